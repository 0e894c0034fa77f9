"""Data sets given as Python objects."""
