"""Damage archives, kill writers and fill file systems; count what is detected or survived."""
