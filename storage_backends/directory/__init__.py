"""Archives stored as directories: locks, atomic publication, checksums and repair."""
