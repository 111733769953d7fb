"""Measure size, conversion and reading of Zarr archives beside annbatch."""
