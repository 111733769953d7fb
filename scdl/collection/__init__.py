"""Many archives read as one dataset."""
