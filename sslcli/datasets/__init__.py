"""Datasets, one file per plugin."""
