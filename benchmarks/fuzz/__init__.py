"""Inputs that nobody wrote, for every parser of what others wrote."""
