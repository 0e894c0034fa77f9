"""Datasets given as Python objects."""
