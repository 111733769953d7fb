"""Measure conversion, opening and reading beside bionemo-scdl."""
