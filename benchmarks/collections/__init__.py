"""Measure a collection beside one archive, and flattening beside bionemo-scdl."""
