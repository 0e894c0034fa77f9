"""Operations that need no more than the pixel itself, for any number of channels; and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .chosen import on_chosen


class FlipOptions(Options):
    p: float = Field(default=0.5, ge=0, le=1)
    """Share of the samples that are flipped."""


class Flip(Operation):
    """Mirrors left and right. Right after a crop it costs nothing: the crop does it (see `pipeline`)."""

    Options = FlipOptions
    key = "flip"
    draws = 1
    options: FlipOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"chosen": uniform[:, 0] < self.options.p}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return on_chosen(lambda x: x.flip(-1), images, parameters["chosen"])


class SolarizeOptions(Options):
    p: float = Field(default=0.2, ge=0, le=1)
    """Share of the samples that are solarized."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Values from here on are inverted; images lie between 0 and 1."""


class Solarize(Operation):
    """Inverts the bright values (Grill et al., *BYOL*, appendix B)."""

    Options = SolarizeOptions
    key = "solarize"
    draws = 1
    options: SolarizeOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"chosen": uniform[:, 0] < self.options.p}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        threshold = self.options.threshold
        return on_chosen(lambda x: torch.where(x >= threshold, 1 - x, x), images, parameters["chosen"])


def normalise(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """Returns (images − mean) / std, channel by channel.

    Args:
        images: (N, C, H, W) or (C, H, W), float in [0, 1], or uint8, which is taken as 255ths.
        mean: C numbers; a tensor on the images' device where nothing must wait.
        std: likewise.

    Returns:
        float32 of the same shape.
    """
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return torch.addcmul(-mean / std, images, 1 / std)  # one pass over the images
