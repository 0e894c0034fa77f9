"""The operation `jitter`: color jitter, for images with three channels.

It follows torchvision's ColorJitter: four adjustments in an order drawn for each sample, clamped to [0, 1] after each,
with the hue shifted in HSV. A single merged color matrix would be wrong by up to ten 8-bit levels.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .grayscale import luma
from .selected import takes_subsets

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class JitterOptions(Options):
    brightness: float = Field(default=0.4, ge=0)
    """Brightness: the factor is drawn from 1 ± this, but not below 0."""
    contrast: float = Field(default=0.4, ge=0)
    """Contrast: likewise, for the distance from the image's mean gray."""
    saturation: float = Field(default=0.4, ge=0)
    """Saturation: likewise, for the distance from the pixel's own gray."""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """The hue is shifted by up to this fraction of the color wheel in either direction."""
    p: float = Field(default=0.8, ge=0, le=1)
    """Fraction of samples that are changed."""


class Jitter(Operation):
    """Random brightness, contrast, saturation and hue.

    Its parameters: `chosen` (N,) bool; `factors` (N, 4) float32, the three factors and the shift of the hue; `order`
    (N, 4) int64, which of the four comes first, second, …; `rank` (N, 4), the inverse of `order`.
    """

    Options = JitterOptions
    channels = frozenset({3})
    draws = 9
    options: JitterOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        strength = [self.options.brightness, self.options.contrast, self.options.saturation]
        low = torch.tensor([max(0.0, 1 - x) for x in strength] + [-self.options.hue], dtype=torch.float64)
        high = torch.tensor([1 + x for x in strength] + [self.options.hue], dtype=torch.float64)
        order = uniform[:, 5:9].argsort(1)
        return {
            "chosen": uniform[:, 0] < self.options.p,
            "factors": (low + (high - low) * uniform[:, 1:5]).float(),
            "order": order,
            "rank": order.argsort(1),
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        chosen, factors = parameters["chosen"], parameters["factors"]
        if takes_subsets(images):
            return self._by_order(images, chosen, factors, parameters["order"])
        return self._static(images, chosen, factors, parameters["rank"])

    def _by_order(self, images: Tensor, chosen: Tensor, factors: Tensor, order: Tensor) -> Tensor:
        """Samples with the same order are adjusted together, each adjustment once."""
        strength = [self.options.brightness, self.options.contrast, self.options.saturation, self.options.hue]
        active = torch.tensor(strength) > 0  # adjustments of strength 0 are left out of the order
        order = order[active[order]].view(len(order), sum(x > 0 for x in strength))
        digits = 4 ** torch.arange(order.shape[1])
        code = torch.where(chosen, (order * digits).sum(1), -1)
        result = images
        for value in sorted(set(code.tolist()) - {-1}):
            index = (code == value).nonzero().squeeze(1)
            x, factor = images[index], factors[index]
            for kind in order[int(index[0])].tolist():
                x = adjust(x, factor[:, kind], kind)
            result = images.clone() if result is images else result
            result.index_copy_(0, index, x)
        return result

    def _static(self, images: Tensor, chosen: Tensor, factors: Tensor, rank: Tensor) -> Tensor:
        """The same with static shapes: three blends before the hue is shifted, and three after it.

        A blend by the factor 1 leaves a pixel bitwise unchanged, so unneeded blends do nothing.
        """
        factors = torch.where(chosen.unsqueeze(1), factors, 1.0)
        hue = rank[:, HUE:]
        x = images
        for nth in range(3):
            x = self._blend(x, torch.where((rank < hue) & (rank == nth), factors, 1.0))
        if self.options.hue > 0:
            x = torch.where(chosen.view(-1, 1, 1, 1), adjust(x, factors[:, HUE], HUE), x)
        for nth in range(1, 4):
            x = self._blend(x, torch.where((rank > hue) & (rank == nth), factors, 1.0))
        return x

    @staticmethod
    def _blend(images: Tensor, factors: Tensor) -> Tensor:
        """Adjusts at most one of brightness, contrast and saturation: the one whose factor is not 1."""
        brightness, contrast, saturation = (factors[:, kind].view(-1, 1, 1, 1) for kind in range(3))
        gray = luma(images)
        mean = gray.mean((1, 2, 3), keepdim=True)
        # One blend for all three: with black, with the mean gray, with the pixel's own gray.
        target = torch.where(saturation != 1, gray, torch.where(contrast != 1, mean, 0.0))
        return torch.lerp(target, images, brightness * contrast * saturation).clamp(0, 1)


def adjust(images: Tensor, factor: Tensor, kind: int) -> Tensor:
    """Makes one adjustment like torchvision's `adjust_…` function of that name.

    Args:
        images: (N, 3, H, W) float in [0, 1].
        factor: (N,); for the hue its shift, as a fraction of the color wheel.
        kind: `BRIGHTNESS`, `CONTRAST`, `SATURATION` or `HUE`.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    factor = factor.view(-1, 1, 1, 1)
    if kind == BRIGHTNESS:
        return (images * factor).clamp_(0, 1)
    if kind == CONTRAST:
        mean = luma(images.mean((2, 3), keepdim=True))  # the mean's luma is the luma's mean
        return torch.lerp(mean, images, factor).clamp_(0, 1)
    if kind == SATURATION:
        return torch.lerp(luma(images), images, factor).clamp_(0, 1)
    return shift_hue(images, factor.view(-1, 1, 1))


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shifts the hue in HSV (Smith, *Color gamut transform pairs*, 1978).

    A channel's value is the maximum minus a part of the chroma: 0 where the hue is within a sixth of the color wheel
    from the channel's own hue, 1 where it is two sixths away or more, linear between.

    Args:
        images: (N, 3, H, W) in [0, 1].
        shift: broadcasts with (N, H, W); as a fraction of the color wheel.
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    is_red, is_green = high == red, high == green
    difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    third = torch.where(is_red, 0.0, torch.where(is_green, 1 / 3, 2 / 3))
    hue = difference / (6 * torch.where(chroma == 0, 1.0, chroma)) + third + shift
    own = torch.arange(3, device=images.device).view(3, 1, 1) / 3
    distance = hue.unsqueeze(1) - own
    distance = (distance - distance.round()).abs_()  # at most half the circle
    return high.unsqueeze(1) - distance.mul_(6).sub_(1).clamp_(0, 1).mul_(chroma.unsqueeze(1))
