"""Measure neighbours of a batch beside bionemo-scdl, and conversion by workers."""
