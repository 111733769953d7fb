"""What an archive survives: counts of what was tried and what was found, as one table."""
