"""Checks that an archive is sound."""
