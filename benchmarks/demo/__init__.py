"""Convert real cells to an archive and train from it."""
