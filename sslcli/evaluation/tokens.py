"""`feature=tokens`: the mean of a network's patch tokens instead of its pooled feature."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.errors import UserError


class MeanOfTokens(Backbone):
    """A backbone whose pooled feature is the mean of its patch tokens, (N, D).

    A wrapper, so that it works with every evaluator, also those that train a copy.

    Raises:
        UserError: the network has no tokens.
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            parameter = next(backbone.parameters())
            image = torch.zeros(1, backbone.spec.channels, image_size, image_size, device=parameter.device)
            tokens = backbone(image).tokens
        if tokens is None:
            raise UserError("feature=tokens: this network has no tokens (a ViT has); use feature=pooled")
        self.spec = dataclasses.replace(backbone.spec, feature_dim=tokens.shape[-1])

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Backbone:
        raise UserError("backbone: the mean of tokens wraps another backbone; name that one")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Returns the mean over the patch tokens as `pooled`; the rest as it is."""
        found = self.backbone(x, mask)
        assert found.tokens is not None
        return Features(found.tokens.mean(dim=1), found.tokens, found.grid)
