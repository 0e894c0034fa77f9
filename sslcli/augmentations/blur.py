"""Gaussian blur with a sigma for each sample, as two products with banded matrices.

Two things differ between the authors' codes, and are options. The kernel is a tenth of the image in SimCLR's and
BYOL's own code, and practically unlimited in PIL, which the other methods use. That matters for small images: cut off
to 3 pixels, a sigma of 2 acts like 0.8; at 224 pixels the two are the same to rounding. Beyond its edges the image is
black in the first two, and PIL repeats its border.
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

from .bands import BLOCK, Block, block_starts, multiply_blocks, uses_bands
from .matrices import multiply
from .selected import on_chosen

Padding = Literal["reflect", "edge", "zeros"]
#: A wide kernel is cut off at this many sigmas; the weight beyond is below 1e-6.
_WIDE = 5


class BlurOptions(Options):
    p: float = Field(default=0.5, ge=0, le=1)
    """Fraction of samples that are blurred."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation, in pixels of the view."""
    kernel: Literal["wide"] | float = "wide"
    """`wide`: not cut off; or the kernel's size as a fraction of the view's side (SimCLR's and BYOL's code: 0.1)."""
    padding: Padding = "reflect"
    """What is beyond the edges: the image `reflect`ed, its border repeated (`edge`, as in PIL), or black (`zeros`, as
    in SimCLR's and BYOL's code)."""

    @field_validator("sigma")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two numbers above 0 in ascending order")
        return value

    @field_validator("kernel")
    @classmethod
    def _share(cls, value: Literal["wide"] | float) -> Literal["wide"] | float:
        if value != "wide" and not 0 < value < 1:
            raise ValueError("must be 'wide' or a fraction of the view's side between 0 and 1")
        return value


class Blur(Operation):
    """Gaussian blur (Chen et al., *SimCLR*, appendix A)."""

    Options = BlurOptions
    drawn = frozenset({"p"})
    draws = 2
    options: BlurOptions

    @property
    def radius(self) -> int:
        """Pixels to each side that the kernel reaches; at most as far as the image can be reflected."""
        if self.options.kernel == "wide":
            return min(math.ceil(_WIDE * self.options.sigma[1]), self.size - 1)
        # The tiny term is needed because 0.29 × 100 is slightly less than 29.
        return int(self.size * self.options.kernel + 1e-9) // 2

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        low, high = self.options.sigma
        sigma = low + (high - low) * uniform[:, 1]
        return {"chosen": uniform[:, 0] < self.options.p, "sigma": sigma.float()}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return on_chosen(self._blur, images, parameters["chosen"], parameters["sigma"])

    def _blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        matrix = blur_matrix(sigma, self.size, self.radius, self.options.padding)
        if uses_bands(images, self.size):
            blocks = [self._blocks(each) for each in matrix]
            return multiply_blocks(blocks, images, blocks, self.size)
        return multiply(matrix, images, matrix).clamp(0, 1)

    def _blocks(self, matrix: Tensor) -> list[Block]:
        """Returns the part of a matrix (S, S) that may not be zero."""
        taps = min(BLOCK + 2 * self.radius, self.size)
        starts = [(first, min(max(first - self.radius, 0), self.size - taps)) for first in block_starts(self.size)]
        return [Block(first, start, matrix[first : first + BLOCK, start : start + taps]) for first, start in starts]


def blur_matrix(sigma: Tensor, size: int, radius: int, padding: Padding = "reflect") -> Tensor:
    """Returns the blur along one side as a matrix, including what is beyond the edges.

    Args:
        sigma: (N,) in pixels.
        size: S, pixels of the side.
        radius: pixels to each side that the kernel reaches, less than S.
        padding: what is beyond the edges; a reflection does not repeat the border.

    Returns:
        (N, S, S) float32; each row sums to 1, with `zeros` to the part of the kernel that is inside.
    """
    distance = torch.arange(2 * size - 1, device=sigma.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (distance / sigma.unsqueeze(1)).square()) * (distance <= radius)  # (N, 2S − 1)
    weights = weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])
    both_sides = torch.cat([weights[:, 1:size].flip(1), weights[:, :size]], 1)
    direct = both_sides.unfold(1, size, 1).flip(1)  # weights at |j − i|
    if padding == "zeros":
        return direct
    if padding == "edge":
        # Of row i, what the kernel has at distances above i.
        beyond = (1 + weights[:, :1]) / 2 - weights[:, :size].cumsum(1)
        left, right = beyond.unsqueeze(2), beyond.flip(1).unsqueeze(2)
        return direct + F.pad(left, (0, size - 1)) + F.pad(right, (size - 1, 0))
    # Pixel j ≥ 1 is reflected to −j, at distance i + j from i; the other edge is symmetric.
    here = torch.arange(size, device=sigma.device)
    reflected = weights.unfold(1, size, 1) * (here > 0)
    return direct + reflected + reflected.flip(1, 2)
