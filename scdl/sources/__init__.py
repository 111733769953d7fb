"""Sources of conversions, with one module per format."""
