"""Zarr archives: size, conversion and reading, beside annbatch."""
