"""Mixup and CutMix: each image of a batch is mixed with the one at the same distance from the other end, and the loss
is that of both labels, in the same proportion.

Zhang et al., *mixup*, https://arxiv.org/abs/1710.09412; Yun et al., *CutMix*, https://arxiv.org/abs/1905.04899. One
draw per batch, as in timm's `Mixup(mode="batch")`, which DeiT and MAE use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.randomness import uniform

#: Attempts at a gamma variate, of which more than 95% succeed.
_ATTEMPTS = 12
_GAMMA = 1 + 2 * _ATTEMPTS


class MixingOptions(Options):
    """Options of training on mixed images."""

    mixup: float = Field(default=0.0, ge=0)
    """α of mixup: two images are blended, the share of the first drawn from Beta(α, α); 0: off (MAE and DeiT: 0.8)."""
    cutmix: float = Field(default=0.0, ge=0)
    """α of CutMix: a box of one image is pasted into another, its area drawn likewise; 0: off (MAE and DeiT: 1)."""
    mixing_probability: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the batches that are mixed, if `mixup` or `cutmix` is on."""
    switch_probability: float = Field(default=0.5, ge=0, le=1)
    """Fraction of these that get CutMix, if both are on."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (MAE and DeiT: 0.1)."""

    @property
    def mixes(self) -> bool:
        """Whether any batch is mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixing_probability > 0

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if not (self.mixup or self.cutmix) and self.mixing_probability != 1:
            raise ValueError("mixing_probability is for mixup and cutmix, and both are off: set one of them")
        if not (self.mixup and self.cutmix) and self.switch_probability != 0.5:
            raise ValueError("switch_probability chooses between mixup and cutmix: set both, or leave it out")
        return self


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed.

    Attributes:
        share: λ, of the image itself; 1: not mixed.
        box: top, bottom, left and right (excluded) of what is pasted; None: the images are blended.
    """

    share: float = 1.0
    box: tuple[int, int, int, int] | None = None

    def images(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W): a new tensor unless λ is 1."""
        if self.share == 1:
            return images
        if self.box is None:
            return torch.lerp(images.flip(0), images, self.share)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        return mixed

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Returns the cross-entropy with the mixed and smoothed labels: it is linear in them, hence the sum of two.

        Args:
            scores: (N, C) of mixed images.
            labels: (N,) int64 of the images before.
            label_smoothing: ε: a label's target is 1 − ε + ε/C, that of each other class ε/C.

        Returns:
            0-dim, the mean over the images.
        """
        own = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
        if self.share == 1:
            return own
        other = F.cross_entropy(scores, labels.flip(0), label_smoothing=label_smoothing)
        return self.share * own + (1 - self.share) * other


def draw_mixing(options: MixingOptions, height: int, width: int, *keys: int) -> Mixing:
    """Draws how a batch of images of this size is mixed: a function of the keys (a seed, a step).

    A pasted box has the images' aspect ratio and 1 − λ of their area, its center is anywhere, and it is cut off at the
    edges; λ is then what it leaves of an image.
    """
    if not options.mixes:
        return Mixing()
    numbers = uniform(*keys, count=4 + 2 * _GAMMA)
    first, switch, y, x = numbers[:4].tolist()
    if first >= options.mixing_probability:
        return Mixing()
    cuts = options.cutmix > 0 and (options.mixup == 0 or switch < options.switch_probability)
    share = beta(options.cutmix if cuts else options.mixup, numbers[4:].view(2, _GAMMA))
    if not cuts:
        return Mixing(share)
    box = cut_box(height, width, share, (int(y * height), int(x * width)))
    top, bottom, left, right = box
    return Mixing(1 - (bottom - top) * (right - left) / (height * width), box)


def cut_box(height: int, width: int, share: float, center: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns top, bottom, left and right (excluded) of a box of √(1 − share) of each side around a center, cut off at
    the image's edges."""
    ends: list[int] = []
    for side, middle in zip((height, width), center, strict=True):
        cut = int(side * math.sqrt(1 - share))
        ends += [max(middle - cut // 2, 0), min(middle + (cut + 1) // 2, side)]
    top, bottom, left, right = ends
    return top, bottom, left, right


def beta(alpha: float, numbers: Tensor) -> float:
    """Returns a variate of Beta(α, α), as a share of two gamma variates.

    Those are Marsaglia and Tsang's (*A Simple Method for Generating Gamma Variables*, 2000): the first attempt that is
    accepted. For α < 1 a variate of shape α + 1 is multiplied by u^(1/α), here on a logarithmic scale.

    Args:
        alpha: above 0.
        numbers: (2, 25) float64, uniform in [0, 1).
    """
    d = (alpha if alpha >= 1 else alpha + 1) - 1 / 3
    normal, accept = torch.special.ndtri(numbers[:, 1 : 1 + _ATTEMPTS]), numbers[:, 1 + _ATTEMPTS :]
    v = (1 + normal / math.sqrt(9 * d)) ** 3
    good = (v > 0) & (accept.log() < normal.square() / 2 + d * (1 - v + v.log()))
    log_gamma = (d * v).log().gather(1, good.int().argmax(1, keepdim=True)).squeeze(1)
    if alpha < 1:
        log_gamma = log_gamma + numbers[:, 0].log() / alpha
    return float(torch.sigmoid(log_gamma[0] - log_gamma[1]))
