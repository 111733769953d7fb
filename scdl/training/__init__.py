"""Batches for training: orders of cells, reading ahead, layouts, the loader."""
