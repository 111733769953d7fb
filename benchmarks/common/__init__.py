"""What several subjects share: measuring, child processes, reports, options and data."""
