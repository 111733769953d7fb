"""Compiled loops over plain arrays, each beside the NumPy form it is tested against.

All release the GIL and are cached on disk. They know nothing of archives or torch, and never write
outside their output, whatever the column ids are.
"""
