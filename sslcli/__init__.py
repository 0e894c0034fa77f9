"""Pre-trains image encoders by self-supervision. Importing this does not import torch."""

__version__ = "0.1.0"
