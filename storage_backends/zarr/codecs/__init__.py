"""Codecs of chunks, and the compressions that consist of them."""
