"""Threads, caches, compiled kernels and Arrow helpers, independent of archives."""
