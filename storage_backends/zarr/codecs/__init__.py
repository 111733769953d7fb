"""Codecs of chunks, and the compression profiles that combine them."""
