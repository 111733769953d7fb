"""Measure training loaders beside bionemo-scdl, annbatch, scDataset and AnnLoader."""
