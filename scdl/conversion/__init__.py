"""Conversion of sources to archives, and of archives to AnnData."""
