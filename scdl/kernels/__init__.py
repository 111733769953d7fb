"""Compiled loops over plain arrays, each with a NumPy version against which it is tested.

All kernels release the GIL and are cached on disk. They do not depend on archives or torch, and
never write out of bounds, whatever the column ids are.
"""
