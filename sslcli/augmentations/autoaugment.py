"""The operation `autoaugment`: learned policies of PIL's operations, for images with three channels.

Cubuk et al., *AutoAugment*, https://arxiv.org/abs/1805.09501. Levels mean what they mean in Google's code and timm's,
on a scale to 10; torchvision's has nine steps and other ranges.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sslcli.contracts.views import Parameters

from .policies import Policy, PolicyOptions, Posterize, parse_policy, values_of

POLICIES = {
    # The paper's, table 9.
    "imagenet": """
posterize 0.4 8, rotate 0.6 9
solarize 0.6 5, autocontrast 0.6 5
equalize 0.8 8, equalize 0.6 3
posterize 0.6 7, posterize 0.6 6
equalize 0.4 7, solarize 0.2 4
equalize 0.4 4, rotate 0.8 8
solarize 0.6 3, equalize 0.6 7
posterize 0.8 5, equalize 1.0 2
rotate 0.2 3, solarize 0.6 8
equalize 0.6 8, posterize 0.4 6
rotate 0.8 8, color 0.4 0
rotate 0.4 9, equalize 0.6 2
equalize 0.0 7, equalize 0.8 8
invert 0.6 4, equalize 1.0 8
color 0.6 4, contrast 1.0 8
rotate 0.8 8, color 1.0 2
color 0.8 8, solarize 0.8 7
sharpness 0.4 7, invert 0.6 8
shear_x 0.6 5, equalize 1.0 9
color 0.4 0, equalize 0.6 3
equalize 0.4 7, solarize 0.2 4
solarize 0.6 5, autocontrast 0.6 5
invert 0.6 4, equalize 1.0 8
color 0.6 4, contrast 1.0 8
equalize 0.8 8, equalize 0.6 3""",
    # Of Google's EfficientNet code, which SupCon uses. There a translation at level 9 is by 225 pixels of any image.
    "v0": """
equalize 0.8 1, shear_y 0.8 4
color 0.4 9, equalize 0.6 3
color 0.4 1, rotate 0.6 8
solarize 0.8 3, equalize 0.4 7
solarize 0.4 2, solarize 0.6 2
color 0.2 0, equalize 0.8 8
equalize 0.4 8, solarize_add 0.8 3
shear_x 0.2 9, rotate 0.6 8
color 0.6 1, equalize 1.0 2
invert 0.4 9, rotate 0.6 0
equalize 1.0 9, shear_y 0.6 3
color 0.4 7, equalize 0.6 0
posterize 0.4 6, autocontrast 0.4 7
solarize 0.6 8, color 0.6 9
solarize 0.2 4, rotate 0.8 9
rotate 1.0 7, translate_y 0.8 9
shear_x 0.0 0, solarize 0.8 4
shear_y 0.8 0, color 0.6 4
color 1.0 0, rotate 0.6 2
equalize 0.8 4, equalize 0.0 8
equalize 1.0 4, autocontrast 0.6 2
shear_y 0.4 7, solarize_add 0.6 7
posterize 0.8 2, solarize 0.6 10
solarize 0.6 8, equalize 0.6 1
color 0.8 6, rotate 0.4 5""",
}


class AutoAugmentOptions(PolicyOptions):
    """Options of AutoAugment."""

    p: float = Field(default=1.0, ge=0, le=1)
    """Fraction of samples that get a sub-policy, two operations with probabilities of their own."""
    policy: Literal["imagenet", "v0"] = "imagenet"
    """imagenet: the paper's; v0: the one of Google's EfficientNet code (SupCon), where posterize keeps 0 to 4 bits."""


class AutoAugment(Policy):
    """AutoAugment's policy for ImageNet.
    One of 25 sub-policies for each sample."""

    Options = AutoAugmentOptions
    drawn = frozenset({"p", "policy", "fill"})
    draws = 6
    options: AutoAugmentOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        table = parse_policy(POLICIES[self.options.policy])
        chosen, number = uniform[:, :1] < self.options.p, (uniform[:, 1] * len(table)).long()
        kind, probability, level = table[number].unbind(-1)
        on = chosen & (uniform[:, 2:4] < probability)
        posterize: Posterize = "original" if self.options.policy == "imagenet" else "few"
        values = values_of(kind.long(), level, uniform[:, 4:6] < 0.5, self.size, posterize)
        return self.packed(kind.long().where(on, -1), values)
