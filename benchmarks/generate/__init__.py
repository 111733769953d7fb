"""Write an h5ad file of realistic counts, of any size."""
