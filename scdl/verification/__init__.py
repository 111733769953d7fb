"""Verification of archives: checksums and structure."""
