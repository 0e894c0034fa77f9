"""Cutout: a square of each image is masked (DeVries & Taylor, *Improved Regularization … with Cutout*, 1708.04552)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters


class CutoutOptions(Options):
    """Options of cutout."""

    p: float = Field(default=0.5, ge=0, le=1)
    """Fraction of samples in which a square is masked."""
    side: float = Field(default=0.5, gt=0, le=1)
    """Side of the square, as a fraction of the view's."""
    fill: float = Field(default=0.5, ge=0, le=1)
    """Value of the square; images have values from 0 to 1."""


class Cutout(Operation):
    """Masks a square whose center is anywhere in the image, so parts of it may be outside."""

    Options = CutoutOptions
    draws = 3
    options: CutoutOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        """Returns `chosen` (N,) bool and `corner` (N, 2) int64, top and left, which may be negative."""
        center = (uniform[:, 1:] * self.size).floor().long()
        return {"chosen": uniform[:, 0] < self.options.p, "corner": center - self._side // 2}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        positions = torch.arange(self.size, device=images.device)
        distance = positions - parameters["corner"].unsqueeze(2)  # N×2×size, from the square's top and from its left
        inside = (distance >= 0) & (distance < self._side)
        masked = inside[:, 0, :, None] & inside[:, 1, None, :] & parameters["chosen"].view(-1, 1, 1)
        return torch.where(masked.unsqueeze(1), self.options.fill, images)

    @property
    def _side(self) -> int:
        return max(1, round(self.options.side * self.size))
