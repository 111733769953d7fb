"""The compressed backend: Zarr v3 stores that are AnnData stores too."""
