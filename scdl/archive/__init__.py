"""What an archive consists of: names, rows, feature tables, graphs."""
