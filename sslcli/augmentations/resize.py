"""The operation `resize`: the center of the resized image, the usual view for evaluation."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.views import Parameters

from .resampling import Resampling, ResamplingOptions


class ResizeOptions(ResamplingOptions):
    ratio: float = Field(default=256 / 224, ge=1)
    """The shorter side is resized to this times the view's size; the view is the center."""


class Resize(Resampling):
    """Resizes the shorter side and crops the center, without randomness: the usual view for evaluation.

    An image that already has the view's size is left as it is.
    """

    Options = ResizeOptions
    options: ResizeOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        resized = torch.tensor([self._resized(*size) for size in sizes.tolist()], dtype=torch.float64).view(-1, 2)
        step = sizes / resized
        corner = ((resized - self.size) / 2).round()
        spans = torch.stack([torch.zeros_like(step), sizes.double(), corner * step, step], 2).float()
        return {"rows": spans[:, 0], "columns": spans[:, 1]}

    def note(self, parameters: Parameters) -> str:
        return ""

    def source_side(self) -> int:
        return math.ceil(self.size * self.options.ratio)

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        height, width = self._resized(image.shape[1], image.shape[2])
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return self._resize(image, height, width)[:, top : top + self.size, left : left + self.size].contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the whole image after resizing."""
        if height == width == self.size:
            return height, width
        short = round(self.size * self.options.ratio)
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short
