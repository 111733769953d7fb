"""Benchmarks: realistic data and side-by-side measurements. Not part of the installed package."""
