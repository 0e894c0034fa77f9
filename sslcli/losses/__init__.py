"""Losses as pure functions: tensors in, a scalar out, in float32 at least whatever the autocast."""

from .byol_regression import byol_regression
from .negative_cosine import negative_cosine
from .nt_xent import nt_xent, pair_cosines

__all__ = ["byol_regression", "negative_cosine", "nt_xent", "pair_cosines"]
