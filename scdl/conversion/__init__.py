"""Sources to an archive, archives to AnnData."""
