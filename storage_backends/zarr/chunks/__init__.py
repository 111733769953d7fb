"""Chunks and shards of arrays, read and written."""
