"""AnnData's names and data frames on disk."""
