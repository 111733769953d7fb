"""Damage archives, kill writers, fill file systems; count what is found or survived."""
