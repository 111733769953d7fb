"""Many files to many archives, in processes or on a cluster."""
