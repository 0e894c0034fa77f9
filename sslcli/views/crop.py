"""What turns source images into views of one size: the random resized crop and the resize of evaluations.

Both are two batched matrix products (see `matrices`), which agree with PIL to one 8-bit level, and take a horizontal
flip that follows them into the same products. In a worker process, where images differ in size, one image at a time
is resized by torch's antialiased filters on uint8, which are the same ones.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .matrices import filter_matrix, multiply

Interpolation = Literal["bilinear", "bicubic"]

#: How often torchvision's RandomResizedCrop tries before it takes the middle of the image.
_ATTEMPTS = 10


class ResamplingOptions(Options):
    interpolation: Interpolation = "bilinear"
    """The filter: `bilinear` or `bicubic`; both antialiased."""


class Resampling(Operation):
    """A geometric operation made of one filter along the rows and one along the columns.

    Its parameters are `rows` and `columns`, (N, 4) float32 as `filter_matrix` takes them, and `mirror`, (N,) bool,
    where a flip is done along with it.
    """

    Options = ResamplingOptions
    geometric = True
    options: ResamplingOptions

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        height, width = images.shape[-2:]
        cubic = self.options.interpolation == "bicubic"
        rows = filter_matrix(parameters["rows"], self.size, height, cubic)
        columns = filter_matrix(parameters["columns"], self.size, width, cubic, parameters.get("mirror"))
        return multiply(rows, images.float(), columns / 255, clip=cubic)

    def _resize(self, image: Tensor, height: int, width: int) -> Tensor:
        """(C, H, W) uint8 → (C, height, width) uint8, by the same filters."""
        if image.shape[1:] == (height, width):
            return image.contiguous()
        mode = self.options.interpolation
        return F.interpolate(image[None], (height, width), mode=mode, align_corners=False, antialias=True)[0]


class CropOptions(ResamplingOptions):
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of the crop, before it is resized to a square."""

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two numbers above 0, the smaller one first")
        return value

    @field_validator("scale")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("must be shares of the image, at most 1")
        return value


class Crop(Resampling):
    """Random resized crop (Szegedy et al., *Going deeper with convolutions*), distributed as torchvision's."""

    Options = CropOptions
    key = "crop"
    draws = 2 * _ATTEMPTS + 2
    options: CropOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        top, left, height, width = crop_boxes(uniform, sizes, self.options.scale, self.options.ratio).unbind(1)
        zero = torch.zeros_like(top)
        return {
            "rows": torch.stack([top, height, zero, height / self.size], 1).float(),
            "columns": torch.stack([left, width, zero, width / self.size], 1).float(),
        }

    def source_side(self) -> int:
        # Of a square image, so that the smallest crop with the most uneven sides is not enlarged.
        low, high = self.options.ratio
        return math.ceil(self.size / math.sqrt(self.options.scale[0] * min(low, 1 / high)))

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        top, height = (int(value) for value in parameters["rows"][:2])
        left, width = (int(value) for value in parameters["columns"][:2])
        return self._resize(image[:, top : top + height, left : left + width], self.size, self.size)


def crop_boxes(uniform: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Draws the boxes of random resized crops, distributed as in torchvision's `RandomResizedCrop.get_params`.

    Ten attempts at an area and a ratio, each rounded to whole pixels; the first that fits is placed at random. Where
    none fits: the largest middle part with an allowed ratio.

    Args:
        uniform: (N, 22) float64 in [0, 1).
        sizes: (N, 2), height and width of the images.
        scale: range of the area's share.
        ratio: range of width over height, drawn evenly in its logarithm.

    Returns:
        (N, 4) float64 of whole numbers: top, left, height, width.
    """
    full = sizes.double()
    full_height, full_width = full[:, :1], full[:, 1:]
    area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * uniform[:, :_ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * uniform[:, _ATTEMPTS : 2 * _ATTEMPTS])
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width > 0) & (width <= full_width) & (height > 0) & (height <= full_height)
    attempt = fits.int().argmax(1, keepdim=True)  # the first of them

    middle_width = torch.minimum(full_width, (full_height * ratio[1]).round()).clamp_min(1)
    middle_height = torch.minimum(full_height, (full_width / ratio[0]).round()).clamp_min(1)
    found = fits.any(1, keepdim=True)
    box = torch.cat(
        [
            torch.where(found, height.gather(1, attempt), middle_height),
            torch.where(found, width.gather(1, attempt), middle_width),
        ],
        1,
    )
    room = full - box
    corner = torch.where(found, (uniform[:, -2:] * (room + 1)).floor(), (room / 2).floor())
    return torch.cat([corner, box], 1)


class ResizeOptions(ResamplingOptions):
    ratio: float = Field(default=256 / 224, ge=1)
    """The shorter side is resized to this times the view's size; the middle of that is the view."""


class Resize(Resampling):
    """Resizes the shorter side and takes the middle: the usual view of an evaluation. No chance in it.

    An image that has the view's size already is left as it is.
    """

    Options = ResizeOptions
    key = "resize"
    options: ResizeOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        resized = torch.tensor([self._resized(*size) for size in sizes.tolist()], dtype=torch.float64).view(-1, 2)
        step = sizes / resized
        corner = ((resized - self.size) / 2).round()
        spans = torch.stack([torch.zeros_like(step), sizes.double(), corner * step, step], 2).float()
        return {"rows": spans[:, 0], "columns": spans[:, 1]}

    def source_side(self) -> int:
        return math.ceil(self.size * self.options.ratio)

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        height, width = self._resized(image.shape[1], image.shape[2])
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return self._resize(image, height, width)[:, top : top + self.size, left : left + self.size].contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the whole image once it is resized."""
        if height == width == self.size:
            return height, width
        short = round(self.size * self.options.ratio)
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short
