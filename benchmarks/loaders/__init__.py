"""Training loaders, beside bionemo-scdl, annbatch, scDataset and AnnLoader."""
