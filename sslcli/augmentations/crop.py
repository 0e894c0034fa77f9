"""The operation `crop`: the random resized crop."""

from __future__ import annotations

import math

import torch
from pydantic import field_validator
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Parameters

from .resampling import Resampling, ResamplingOptions

#: Number of attempts of torchvision's RandomResizedCrop before it takes the center of the image.
_ATTEMPTS = 10


class BoxOptions(Options):
    """Options of what draws a box in an image, by its area and its shape."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum fraction of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Minimum and maximum aspect ratio (width / height) of the crop, before it is resized to a square."""

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two numbers above 0 in ascending order")
        return value

    @field_validator("scale")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("must be fractions of the image, at most 1")
        return value


class CropOptions(BoxOptions, ResamplingOptions):
    """Options of the random resized crop."""


class Crop(Resampling):
    """Random resized crop (Szegedy et al., *Going deeper with convolutions*), distributed as torchvision's."""

    Options = CropOptions
    drawn = frozenset({"scale", "ratio"})
    draws = 2 * _ATTEMPTS + 2
    options: CropOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        top, left, height, width = crop_boxes(uniform, sizes, self.options.scale, self.options.ratio).unbind(1)
        zero = torch.zeros_like(top)
        return {
            "rows": torch.stack([top, height, zero, height / self.size], 1).float(),
            "columns": torch.stack([left, width, zero, width / self.size], 1).float(),
        }

    def note(self, parameters: Parameters) -> str:
        (top, height), (left, width) = (parameters[side][:2].round().int().tolist() for side in ("rows", "columns"))
        return f"{width} x {height} at {left}, {top}"

    def source_side(self) -> int:
        # Side of a square image whose smallest crop of the most extreme aspect ratio is not enlarged.
        low, high = self.options.ratio
        return math.ceil(self.size / math.sqrt(self.options.scale[0] * min(low, 1 / high)))

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        top, height = (int(value) for value in parameters["rows"][:2])
        left, width = (int(value) for value in parameters["columns"][:2])
        return self._resize(image[:, top : top + height, left : left + width], self.size, self.size)


def crop_boxes(uniform: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Draws the boxes of random resized crops, distributed as in torchvision's `RandomResizedCrop.get_params`.

    Of ten attempts at an area and a ratio, each rounded to whole pixels, the first that fits is placed at random. If
    none fits: the largest center crop with an allowed ratio.

    Args:
        uniform: (N, 22) float64 in [0, 1).
        sizes: (N, 2), height and width of the images.
        scale: range of the area as a fraction of the image's.
        ratio: range of width / height, drawn uniformly on a logarithmic scale.

    Returns:
        (N, 4) float64 with integer values: top, left, height, width.
    """
    full = sizes.double()
    full_height, full_width = full[:, :1], full[:, 1:]
    area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * uniform[:, :_ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * uniform[:, _ATTEMPTS : 2 * _ATTEMPTS])
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width > 0) & (width <= full_width) & (height > 0) & (height <= full_height)
    attempt = fits.int().argmax(1, keepdim=True)  # the first of them

    center_width = torch.minimum(full_width, (full_height * ratio[1]).round()).clamp_min(1)
    center_height = torch.minimum(full_height, (full_width / ratio[0]).round()).clamp_min(1)
    found = fits.any(1, keepdim=True)
    drawn = torch.cat([height.gather(1, attempt), width.gather(1, attempt)], 1)
    box = torch.where(found, drawn, torch.cat([center_height, center_width], 1))
    room = full - box
    corner = torch.where(found, (uniform[:, -2:] * (room + 1)).floor(), (room / 2).floor())
    return torch.cat([corner, box], 1)
