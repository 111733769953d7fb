"""Parts of an archive: schema, rows, feature tables and graphs."""
