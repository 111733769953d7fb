"""Training: orders of cells, epochs, batch layouts and the loader."""
