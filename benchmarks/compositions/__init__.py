"""Compare nested selections of genes with anndata and pandas."""
