"""Base classes and types of every plugin group. The bottom layer: imports nothing of ours, and nothing at start-up."""
