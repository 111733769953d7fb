"""Collections: many archives read as one dataset."""
