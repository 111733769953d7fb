"""What can be converted: a module for each format."""
