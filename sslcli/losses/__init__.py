"""Losses as pure functions: tensors in, a scalar out, in float32 at least whatever the autocast."""

from .barlow_twins import barlow_twins, barlow_twins_terms
from .byol_regression import byol_regression
from .contrast import (
    Contrast,
    batch_contrast,
    contrast_bce,
    contrast_ce,
    contrast_monitors,
    inner_product,
    queue_contrast,
)
from .dino import dino, teacher_entropy
from .eqco import eqco
from .info_nce import batch_info_nce, info_nce
from .negative_cosine import negative_cosine
from .nt_xent import nt_xent, pair_cosines
from .sinkhorn import sinkhorn
from .sup_con import sup_con, view_cosines
from .swapped_prediction import swapped_prediction
from .vicreg import VICRegTerms, vicreg, vicreg_terms

__all__ = [
    "Contrast",
    "VICRegTerms",
    "barlow_twins",
    "barlow_twins_terms",
    "batch_contrast",
    "batch_info_nce",
    "byol_regression",
    "contrast_bce",
    "contrast_ce",
    "contrast_monitors",
    "dino",
    "eqco",
    "info_nce",
    "inner_product",
    "negative_cosine",
    "nt_xent",
    "pair_cosines",
    "queue_contrast",
    "sinkhorn",
    "sup_con",
    "swapped_prediction",
    "teacher_entropy",
    "vicreg",
    "vicreg_terms",
    "view_cosines",
]
