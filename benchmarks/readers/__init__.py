"""Conversion, opening and reading, beside bionemo-scdl."""
