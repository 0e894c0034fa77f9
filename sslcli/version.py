"""The version: the only place where it is set. It imports nothing, so the build can read it."""

__version__ = "0.2.0"
