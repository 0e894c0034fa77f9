"""Optimizers, one file per plugin, and parameter groups."""
