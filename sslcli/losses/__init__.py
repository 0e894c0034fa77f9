"""Losses as pure functions: tensors in, a scalar out, in at least float32 regardless of autocast.

`X_and_metrics` returns the loss `X` and a dictionary of its monitors, 0-dim tensors without gradient: what a method's
`Step` takes. `mean_over` averages several such results; `mean_cosines` and `class_cosines` serve the other losses.
"""

from .barlow_twins import barlow_twins, barlow_twins_and_metrics
from .cosine_losses import byol_regression, negative_cosine
from .dcl import dcl, dcl_and_metrics
from .dino import dino, dino_and_metrics
from .info_nce import batch_info_nce, batch_info_nce_and_metrics, info_nce
from .masked_patches import (
    masked_features,
    masked_features_and_metrics,
    masked_pixels,
    masked_pixels_and_metrics,
)
from .monitors import class_cosines, mean_cosines, mean_over
from .nt_xent import nt_xent, nt_xent_and_metrics
from .queue_distillation import queue_distillation_and_metrics
from .queue_info_nce import queue_info_nce_and_metrics
from .rows import unit_rows
from .sigreg import gaussian_directions, sigreg
from .sinkhorn import sinkhorn
from .sup_con import sup_con
from .swapped_prediction import swapped_prediction
from .vicreg import vicreg, vicreg_and_metrics

__all__ = [
    "barlow_twins",
    "barlow_twins_and_metrics",
    "batch_info_nce",
    "batch_info_nce_and_metrics",
    "byol_regression",
    "class_cosines",
    "dcl",
    "dcl_and_metrics",
    "dino",
    "dino_and_metrics",
    "gaussian_directions",
    "info_nce",
    "masked_features",
    "masked_features_and_metrics",
    "masked_pixels",
    "masked_pixels_and_metrics",
    "mean_cosines",
    "mean_over",
    "negative_cosine",
    "nt_xent",
    "nt_xent_and_metrics",
    "queue_distillation_and_metrics",
    "queue_info_nce_and_metrics",
    "sigreg",
    "sinkhorn",
    "sup_con",
    "swapped_prediction",
    "unit_rows",
    "vicreg",
    "vicreg_and_metrics",
]
