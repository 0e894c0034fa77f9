"""Base classes and types of every plugin group: the bottom layer, which imports nothing else of the package."""
