"""One archive read as cells: rows, genes, batches, tensors."""
