"""Archives that are directories: locks, publication, checksums, repair."""
