"""Draw the figures of the documentation from reports."""
