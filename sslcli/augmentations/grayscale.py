"""The operation `grayscale`, for images with three channels."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .selected import on_chosen

#: ITU-R 601's luma, with the digits that torchvision and PIL use.
_LUMA = (0.2989, 0.587, 0.114)


def luma(images: Tensor) -> Tensor:
    """(N, 3, H, W) → (N, 1, H, W): perceived brightness."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return torch.add(torch.add(red * _LUMA[0], green, alpha=_LUMA[1]), blue, alpha=_LUMA[2])


class GrayscaleOptions(Options):
    p: float = Field(default=0.2, ge=0, le=1)
    """Fraction of samples that are converted."""


class Grayscale(Operation):
    """Replaces all three channels by their luma."""

    Options = GrayscaleOptions
    drawn = frozenset({"p"})
    channels = frozenset({3})
    draws = 1
    options: GrayscaleOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"chosen": uniform[:, 0] < self.options.p}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return on_chosen(lambda x: luma(x).expand_as(x), images, parameters["chosen"])
