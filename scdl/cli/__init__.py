"""Command-line interface: ``scdl`` and ``convert_h5ad_to_scdl``."""
