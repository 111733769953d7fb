"""Measure conversions of each source format beside the readers of these formats."""
