"""Read for many epochs beside a writer, and look for leaks."""
