"""Base of `autoaugment` and `randaugment`: a few of PIL's operations one after another, drawn for each sample."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .levels import NUMBER, OPERATIONS, to_levels, transform, warps
from .selected import on_chosen

#: See `values_of`.
Posterize = Literal["few", "original", "increasing"]
#: The highest level; an operation's value is a function of the level over this.
MOST = 10


class PolicyOptions(Options):
    """Options of AutoAugment and RandAugment."""

    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How warps resample; `nearest` and `bilinear` as PIL, `bicubic` with torch's kernel (a = -0.75; PIL: -0.5)."""
    fill: float | tuple[float, float, float] = 0.5
    """What a warp shows outside of the image, from 0 to 1, for all channels or each."""

    @field_validator("fill")
    @classmethod
    def _in_range(cls, value: float | tuple[float, float, float]) -> float | tuple[float, float, float]:
        if not all(0 <= each <= 1 for each in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("must be from 0 to 1")
        return value


class Policy(Operation):
    """Some operations per sample, on levels that are rounded to 8 bits first.

    Its parameters: `kind` (N, layers) int64, numbers of `levels.OPERATIONS` or −1; `value` (N, layers) float32; `warp`
    (N, layers, 2, 3) float32; `fill` (N, 3) float32. A sample whose kinds are all −1 is left as it is.
    """

    channels = frozenset({3})
    layers: ClassVar[int] = 2
    options: PolicyOptions

    def packed(self, kind: Tensor, value: Tensor) -> Parameters:
        """Returns the parameters for kinds (N, layers) int64 and values (N, layers) float64."""
        fill = self.options.fill
        colors = torch.tensor(fill if isinstance(fill, tuple) else (fill,) * 3)
        return {
            "kind": kind,
            "value": value.float(),
            "warp": warps(kind, value, self.size),
            "fill": to_levels(colors).expand(len(kind), 3),
        }

    def note(self, parameters: Parameters) -> str | None:
        kinds, values = (parameters[name].flatten().tolist() for name in ("kind", "value"))
        shown = [f"{OPERATIONS[kind]} {value:.2g}" for kind, value in zip(kinds, values, strict=True) if kind >= 0]
        return ", ".join(shown) or None

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        kind = parameters["kind"]
        others = (parameters[name] for name in ("value", "warp", "fill"))
        return on_chosen(self._transform, images, (kind >= 0).any(1), kind, *others)

    def _transform(self, images: Tensor, kind: Tensor, value: Tensor, warp: Tensor, fill: Tensor) -> Tensor:
        levels = to_levels(images)
        for layer in range(kind.shape[1]):
            levels = transform(
                levels, kind[:, layer], value[:, layer], warp[:, layer], fill, self.options.interpolation
            )
        return levels / 255


def values_of(kind: Tensor, level: Tensor, negative: Tensor, size: int, posterize: Posterize) -> Tensor:
    """Returns the values of operations at given levels, as Google's code and timm's.

    Args:
        kind: (N, layers) int64.
        level: (N, layers) float64, 0 to 10.
        negative: (N, layers) bool, for what has a direction.
        size: side of the images in pixels.
        posterize: bits that are kept: 0 to 4 (`few`) or 4 to 8 (`original`) as the level rises; `increasing`: 4 to 0,
            and factors and thresholds too change an image the more, the higher the level is.

    Returns:
        (N, layers) float64.
    """
    share = level / MOST
    signed = torch.where(negative, -share, share)
    bits, threshold = (share * 4).floor(), (share * 256).floor().clamp(max=256)
    factor = share * 1.8 + 0.1
    if posterize == "increasing":
        bits, threshold, factor = 4 - bits, 256 - threshold, (1 + 0.9 * signed).clamp(min=0.1)
    elif posterize == "original":
        bits = 4 + bits
    values = dict.fromkeys(("brightness", "contrast", "color", "sharpness"), factor)
    values |= {"posterize": bits, "solarize": threshold, "solarize_add": (share * 110).floor()}
    values |= {"rotate": 30 * signed} | dict.fromkeys(("shear_x", "shear_y"), 0.3 * signed)
    values |= dict.fromkeys(("translate_x", "translate_y"), 0.45 * size * signed)
    zero = torch.zeros_like(share)
    every = torch.stack([values.get(name, zero) for name in OPERATIONS], -1)
    return every.gather(-1, kind.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def parse_policy(text: str) -> Tensor:
    """Reads a policy: a line for each of its sub-policies, of operations `NAME PROBABILITY LEVEL`, separated by commas.

    Returns:
        (sub-policies, layers, 3) float64: the operation's number, probability and level.
    """
    rows = [[each.split() for each in line.split(",")] for line in text.strip().splitlines()]
    numbers = [[(NUMBER[name], float(p), float(level)) for name, p, level in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64)
