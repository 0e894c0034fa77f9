"""The operation `random_erasing`: a box of each image is replaced by noise or a constant, for any number of channels.

Zhong et al., *Random Erasing Data Augmentation*, https://arxiv.org/abs/1708.04896, with the boxes of timm's version.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sslcli.contracts.views import Operation, Parameters
from sslcli.randomness import hash_bits

from .crop import BoxOptions
from .selected import on_chosen

#: Attempts at a box that fits, as in timm and torchvision; if none does, nothing is erased.
_ATTEMPTS = 10


class RandomErasingOptions(BoxOptions):
    """Options of random erasing."""

    p: float = Field(default=0.25, ge=0, le=1)
    """Fraction of samples that are erased in part (MAE and DeiT: 0.25)."""
    scale: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest area of the box, as a fraction of the image's."""
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Smallest and largest ratio of its height to its width, drawn on a logarithmic scale."""
    fill: Literal["noise"] | float = "noise"
    """A value from 0 to 1, or normal noise for each pixel and channel (timm's `pixel`)."""
    noise: tuple[float, float] = (0.45, 0.225)
    """Mean and standard deviation of the noise, which is cut off at 0 and 1. The default is about ImageNet's, so that
    normalized noise is standard normal, as timm draws it."""

    @field_validator("noise")
    @classmethod
    def _spread(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] < 0:
            raise ValueError("must be a mean and a standard deviation of 0 or more")
        return value

    @field_validator("fill")
    @classmethod
    def _in_range(cls, value: Literal["noise"] | float) -> Literal["noise"] | float:
        if value != "noise" and not 0 <= value <= 1:
            raise ValueError("must be 'noise' or a value from 0 to 1")
        return value


class RandomErasing(Operation):
    """Random erasing.
    Erases a box. Its parameters: `chosen` (N,) bool; `box` (N, 4) int64, top, bottom, left and right (excluded);
    `seed` (N,) int64, of the noise."""

    Options = RandomErasingOptions
    drawn = frozenset({"p", "scale", "ratio"})
    draws = 2 * _ATTEMPTS + 4
    options: RandomErasingOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        scale, (low, high) = self.options.scale, (math.log(each) for each in self.options.ratio)
        area = self.size**2 * (scale[0] + (scale[1] - scale[0]) * uniform[:, :_ATTEMPTS])
        ratio = torch.exp(low + (high - low) * uniform[:, _ATTEMPTS : 2 * _ATTEMPTS])
        sides = torch.stack([(area * ratio).sqrt().round(), (area / ratio).sqrt().round()], 1)  # N×2×attempts
        fits = (sides < self.size).all(1)
        side = sides.gather(2, fits.int().argmax(1).view(-1, 1, 1).expand(-1, 2, 1)).squeeze(2)
        corner = (uniform[:, -4:-2] * (self.size - side + 1)).floor()
        return {
            "chosen": (uniform[:, -2] < self.options.p) & fits.any(1),
            "box": torch.stack([corner, corner + side], 2).flatten(1).long(),
            "seed": (uniform[:, -1] * 2**53).long(),
        }

    def note(self, parameters: Parameters) -> str | None:
        top, bottom, left, right = parameters["box"].tolist()
        return f"{right - left} x {bottom - top} at {left}, {top}" if parameters["chosen"] else None

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return on_chosen(self._erase, images, parameters["chosen"], parameters["box"], parameters["seed"])

    def _erase(self, images: Tensor, box: Tensor, seed: Tensor) -> Tensor:
        positions = torch.arange(self.size, device=images.device)
        ends = box.unsqueeze(2)
        rows = (positions >= ends[:, 0]) & (positions < ends[:, 1])
        columns = (positions >= ends[:, 2]) & (positions < ends[:, 3])
        inside = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
        fill = self.options.fill
        return torch.where(inside, self._noise(images, seed) if fill == "noise" else fill, images)

    def _noise(self, images: Tensor, seed: Tensor) -> Tensor:
        """A function of the seeds alone: 24 bits of a hash for each number, through the normal quantile function."""
        numbers = torch.arange(images[0].numel(), device=images.device)
        bits = (hash_bits(seed.unsqueeze(1), numbers) >> 40) & 0xFFFFFF
        mean, std = self.options.noise
        normal = torch.special.ndtri((bits.float() + 0.5) * 2.0**-24)
        return (mean + std * normal).clamp(0, 1).view_as(images)
