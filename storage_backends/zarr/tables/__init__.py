"""Data frames of a store, read and written."""
