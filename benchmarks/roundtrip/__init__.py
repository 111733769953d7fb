"""Convert random AnnData objects to archives and back, and compare."""
