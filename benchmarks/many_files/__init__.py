"""Neighbours of a batch beside bionemo-scdl, and conversion of many files by workers."""
