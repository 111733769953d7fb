"""Random AnnData through archives and back; see ``__main__``."""
