"""Measure collections of thousands of archives beside one of twenty, and large tables."""
