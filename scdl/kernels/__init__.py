"""Compiled loops, each beside its NumPy twin."""
