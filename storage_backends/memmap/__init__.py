"""The default backend: BioNeMo-SCDL's format of raw NumPy arrays."""
