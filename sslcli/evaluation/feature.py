"""Which output of a network is its feature: the option `feature` of every evaluation.

`cls_lastN` and `cls_mean` are those of DINO's linear protocol for ViT-S (N = 4) and ViT-B (Caron et al.,
https://arxiv.org/abs/2104.14294, section 4.1 and `eval_linear.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.errors import UserError
from sslcli.logs import shown

#: What is in a protocol for each; `cls_lastN` is any number of layers.
MEANING = {
    "pooled": "what the network pools itself",
    "tokens": "mean of the patch tokens",
    "cls_mean": "class token and mean of the patch tokens of the last layer, concatenated",
    "cls_lastN": "class tokens of the last {} layers, concatenated, each behind the final norm",
}


def _known(value: str) -> str:
    if value == "cls_lastN" or (value not in MEANING and depth_of(value) is None):
        raise ValueError("should be pooled, tokens, cls_mean, or cls_lastN for N layers (cls_last4)")
    return value


Feature = Annotated[str, AfterValidator(_known)]


def depth_of(feature: str) -> int | None:
    """Returns N of `cls_lastN`; None for any other feature."""
    found = re.fullmatch(r"cls_last([1-9]\d*)", feature)
    return int(found[1]) if found else None


def meaning_of(feature: str) -> str:
    """Returns a feature in words."""
    return MEANING.get(feature) or MEANING["cls_lastN"].format(depth_of(feature))


class FeatureBackbone(Backbone):
    """A backbone whose pooled feature is another of its outputs: a wrapper, so that it works with every evaluator,
    including those that train a copy.

    Args:
        backbone: the network, in `eval()`.
        feature: `tokens`, `cls_mean` or `cls_lastN`.
        image_size: side in pixels of its images.

    Raises:
        UserError: the network has no tokens, no class token, or not so many layers.
    """

    def __init__(self, backbone: Backbone, feature: str, image_size: int) -> None:
        super().__init__()
        self.backbone, self.feature, self.depth = backbone, feature, depth_of(feature)
        device = next(backbone.parameters()).device
        image = torch.zeros(1, backbone.spec.channels, image_size, image_size, device=device)
        with torch.no_grad():
            found = backbone(image)
            if feature == "tokens" and found.tokens is None:
                raise UserError("feature=tokens: this network has no tokens; use feature=pooled")
            if feature != "tokens" and (not found.layers or found.layers[-1][0] is None):
                instead = "tokens or feature=pooled" if found.tokens is not None else "pooled"
                raise UserError(f"feature={shown(feature)}: this network has no class token; use feature={instead}")
            try:
                dim = self(image).pooled.shape[1]
            except UserError as error:  # fewer layers
                raise UserError(f"feature={shown(feature)}: {error}") from error
        self.spec = dataclasses.replace(backbone.spec, feature_dim=dim)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Backbone:
        raise UserError("backbone: this one changes the feature of another backbone; name that one")

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns the feature as `pooled`; the rest as it is."""
        wanted = max(layers, self.depth or 1)
        found = self.backbone(x, mask, mask_token=mask_token, keep=keep, layers=wanted)
        if self.depth is not None:
            pooled = torch.cat([cls for cls, _ in found.layers[-self.depth :]], dim=1)
        elif self.feature == "cls_mean":
            cls, tokens = found.layers[-1]
            pooled = torch.cat([cls, tokens.mean(dim=1)], dim=1)
        else:
            pooled = found.tokens.mean(dim=1)
        return dataclasses.replace(found, pooled=pooled, layers=found.layers[-layers:])

    def layer_modules(self) -> Sequence[nn.Module]:
        return self.backbone.layer_modules()
