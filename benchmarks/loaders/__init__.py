"""Training loaders of several libraries, measured side by side."""
