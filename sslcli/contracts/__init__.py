"""Base classes and types of every plugin group: the bottom layer, which imports nothing else of the package."""

#: Version of the contracts: what plugins may rely on, and what may change when, is in docs/plugins.md.
VERSION = 2
