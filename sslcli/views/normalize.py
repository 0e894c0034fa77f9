"""Normalization: the last step of every view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """Returns (images − mean) / std, channel by channel.

    Args:
        images: (N, C, H, W) or (C, H, W), float in [0, 1], or uint8, which is divided by 255.
        mean: C numbers; a tensor on the images' device if the host must not wait.
        std: likewise.

    Returns:
        float32 of the same shape.
    """
    if images.dtype == torch.uint8:
        images = images.float() / 255
    shift, scale = shift_and_scale(mean, std, images.device)
    return torch.addcmul(shift, images, scale)  # one pass over the images


def shift_and_scale(
    mean: Tensor | Sequence[float], std: Tensor | Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns normalization as a sum and a product: (C, 1, 1) each, so that it is shift + images × scale."""
    mean = torch.as_tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
    return -mean / std, 1 / std
