"""Predictions for hidden patches: of their pixels (MAE, https://arxiv.org/abs/2111.06377), or of their features
(I-JEPA, https://arxiv.org/abs/2301.08243)."""

from __future__ import annotations

import torch
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


def _checked(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in full precision, the target without a gradient."""
    if prediction.ndim < 2 or prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"two tensors (patches, numbers) of equal shape are needed, not {shapes}")
    return in_full_precision(prediction), in_full_precision(target.detach())
