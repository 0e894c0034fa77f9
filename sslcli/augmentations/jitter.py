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
from .selected import select, takes_subsets

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
#: Names of the parameters that `blends` returns.
_BLENDS = ("blend", "mean", "gray")


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
    (N, 4) int64, which of the four comes first, second, …; and what `blends` returns for them.
    """

    Options = JitterOptions
    drawn = frozenset({"p"})
    channels = frozenset({3})
    draws = 9
    options: JitterOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        strength = [self.options.brightness, self.options.contrast, self.options.saturation]
        low = torch.tensor([max(0.0, 1 - x) for x in strength] + [-self.options.hue], dtype=torch.float64)
        high = torch.tensor([1 + x for x in strength] + [self.options.hue], dtype=torch.float64)
        factors, order = (low + (high - low) * uniform[:, 1:5]).float(), uniform[:, 5:9].argsort(1)
        return {"chosen": uniform[:, 0] < self.options.p, "factors": factors, "order": order, **blends(factors, order)}

    def note(self, parameters: Parameters) -> str | None:
        strengths = (self.options.brightness, self.options.contrast, self.options.saturation, self.options.hue)
        changes = zip("bcsh", parameters["factors"].tolist(), strengths, strict=True)
        shown = [f"{name} {value:.2f}" for name, value, strength in changes if strength]
        return " ".join(shown) if parameters["chosen"] else None

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        if takes_subsets(images):
            return self._by_order(images, parameters["chosen"], parameters["factors"], parameters["order"])
        return self._static(images, parameters)

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
            alone = len(index) == 1  # as most large images are in their chunk: no copy is needed
            x, factor = images[int(index) :][:1] if alone else images[index], factors[index]
            for kind in order[int(index[0])].tolist():
                x = adjust(x, factor[:, kind], kind)
            result = images.clone() if result is images else result
            result.index_copy_(0, index, x)
        return result

    def _static(self, images: Tensor, parameters: Parameters) -> Tensor:
        """The same with static shapes: three blends before the hue is shifted, and three after it."""
        blend = [each.view(len(images), 6, 1, 1, 1).unbind(1) for each in map(parameters.__getitem__, _BLENDS)]
        x = images
        for nth, (weight, mean, gray) in enumerate(zip(*blend, strict=True)):
            if nth == 3 and self.options.hue > 0:
                x = adjust(x, parameters["factors"][:, HUE], HUE)
            x = _blend(x, weight, mean, gray)
        return torch.where(parameters["chosen"].view(-1, 1, 1, 1), x, images)


def blends(factors: Tensor, order: Tensor) -> Parameters:
    """Places brightness, contrast and saturation in six blends: before the hue is shifted up to three, after it too.

    A blend by the factor 1 leaves a pixel bitwise unchanged, so the three that a sample does not need do nothing.

    Args:
        factors: (N, 4) as in the parameters of `Jitter`.
        order: (N, 4) likewise.

    Returns:
        (N, 6) each: `blend` float32, the factor; `mean` and `gray` bool, whether the blend is with the image's mean
        gray (contrast) or with the pixel's own (saturation); if neither, it is with black.
    """
    rank = order.argsort(1)
    place = rank[:, :HUE] + 2 * (rank[:, :HUE] > rank[:, HUE:])
    placed = place.unsqueeze(1) == torch.arange(6).view(6, 1)  # (N, 6, 3)
    blend = torch.where(placed, factors[:, :HUE].unsqueeze(1), 1.0).prod(2)
    return dict(zip(_BLENDS, (blend, placed[..., CONTRAST], placed[..., SATURATION]), strict=True))


def _blend(images: Tensor, weight: Tensor, mean: Tensor, gray: Tensor) -> Tensor:
    """Blends images with their mean gray, their pixels' own gray or black, by (N, 1, 1, 1) each."""
    own = luma(images)
    target = torch.where(gray, own, own.mean((1, 2, 3), keepdim=True) * mean)
    return torch.lerp(target, images, weight).clamp_(0, 1)


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
    difference = select(is_red, green - blue, select(is_green, blue - red, red - green))
    own = (torch.arange(3, device=images.device) / 3).view(3, 1, 1)
    third = select(is_red, own[0], select(is_green, own[1], own[2]))
    # A gray has no hue, and no chroma to show it.
    hue = difference.div_((6 * chroma).clamp_min_(1e-20)).add_(third).add_(shift)
    distance = hue.unsqueeze(1) - own
    distance.sub_(distance.round()).abs_()  # at most half the circle
    return high.unsqueeze(1) - distance.mul_(6).sub_(1).clamp_(0, 1).mul_(chroma.unsqueeze(1))
