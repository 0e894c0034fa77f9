"""Predictions for hidden patches: of their pixels (MAE, https://arxiv.org/abs/2111.06377), or of their features
(I-JEPA, https://arxiv.org/abs/2301.08243)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import in_full_precision

#: Added to the variance of a patch, as in MAE's authors' code.
EPSILON = 1e-6


def masked_pixels(prediction: Tensor, pixels: Tensor, normalize: bool = True) -> Tensor:
    """Returns the mean squared error of predicted pixels, over all patches and their pixels (MAE, section 3).

    Args:
        prediction: (…, P) for each hidden patch its P numbers.
        pixels: (…, P) those that were hidden.
        normalize: compare with (x − mean) / √(variance + 1e-6) of each patch, the variance unbiased (P − 1).

    Returns:
        0-dim; float32 at least. No gradient reaches `pixels`.

    Raises:
        ValueError: if the shapes differ.
    """
    return masked_pixels_and_metrics(prediction, pixels, normalize)[0]


def masked_pixels_and_metrics(
    prediction: Tensor, pixels: Tensor, normalize: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `masked_pixels`, and as `explained` 1 − loss / mean of x²: 0 for predicting the mean of each patch (with
    `normalize`; of all images without), 1 if all is right."""
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = _checked(prediction, pixels)
        if normalize:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + EPSILON).sqrt()
        loss = (prediction - target).square().mean()
        return loss, {"explained": 1 - loss.detach() / target.square().mean()}


def masked_features(prediction: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    """Returns the smooth L1 distance of predicted features from normalized ones (I-JEPA's code, `train.py`).

    The features of each patch are scaled to mean 0 and variance 1 over their D numbers; with d the difference of two
    numbers, the distance is the mean over D of d²/2 where |d| < 1, and of |d| − 1/2 elsewhere.

    Args:
        prediction: (…, D) for each hidden patch.
        features: (…, D) of the target encoder, not normalized.
        weights: (…) of each patch; the loss is the weighted mean.

    Returns:
        0-dim; float32 at least. No gradient reaches `features`.

    Raises:
        ValueError: if the shapes differ.
    """
    return masked_features_and_metrics(prediction, features, weights)[0]


def masked_features_and_metrics(
    prediction: Tensor, features: Tensor, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `masked_features`; `explained`, the share of the targets' variance over images and places that is
    predicted; and `target_std`, its root: 0 if all patches of all images have the same features."""
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = _checked(prediction, features)
        target = F.layer_norm(target, target.shape[-1:])
        weights = weights.to(target.dtype) / weights.sum()
        loss = (F.smooth_l1_loss(prediction, target, reduction="none").mean(dim=-1) * weights).sum()
        with torch.no_grad():
            weights = weights.unsqueeze(-1)
            center = (target * weights).flatten(0, -2).sum(dim=0)
            variance = ((target - center).square() * weights).sum() / target.shape[-1]
            error = ((target - prediction).square() * weights).sum() / target.shape[-1]
        return loss, {"explained": 1 - error / variance.clamp_min(EPSILON), "target_std": variance.sqrt()}


def _checked(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in full precision, the target without a gradient."""
    if prediction.ndim < 2 or prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"two tensors (patches, numbers) of equal shape are needed, not {shapes}")
    return in_full_precision(prediction), in_full_precision(target.detach())
