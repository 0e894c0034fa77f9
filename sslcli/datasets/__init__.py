"""Data sets, one file per plugin."""
