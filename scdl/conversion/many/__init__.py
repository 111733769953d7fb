"""Parallel conversion of many files, in processes or on a cluster."""
