"""A backbone together with the first layers of the projector it was trained with, as one backbone.

SimCLR's second version fine-tunes from the projector's first layer instead of its input: Chen et al., *Big
Self-Supervised Models are Strong Semi-Supervised Learners*, https://arxiv.org/abs/2006.10029, section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options

from .heads import mlp


class KeptLayersOptions(Options):
    """The hidden layers of a projector that stay with the backbone; a backbone's card holds them as `head`."""

    layers: int = Field(ge=1, le=100)
    """Linear layers, each with its norm and ReLU."""
    hidden_dim: int = Field(ge=1)
    """Their width: the dimension of the features."""
    norm: Literal["batch", "none"] = "batch"
    """What follows each linear layer."""


class HeadedBackbone(Backbone):
    """Pooled features of a backbone, passed on through hidden layers: (N, hidden_dim).

    It has no tokens, because no token has ever been through a projector. It is built around another backbone, so that
    no entry point registers it: a method makes it, and a card with `head` restores it.

    Attributes:
        options: what `head` consists of.
    """

    Options = KeptLayersOptions

    def __init__(self, backbone: Backbone, options: KeptLayersOptions, head: nn.Sequential | None = None) -> None:
        """`head` are the layers, (N, feature_dim) → (N, hidden_dim); None: fresh ones."""
        super().__init__()
        self.options = options
        self.backbone = backbone
        width = options.hidden_dim
        if head is None:
            head = mlp(backbone.spec.feature_dim, width, width, options.layers + 1, norm=options.norm)[:-1]
        self.head = head
        self.spec = dataclasses.replace(backbone.spec, feature_dim=width, patch_size=None, maskable=False)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Backbone:
        """Raises UserError: the options do not say which backbone it follows."""
        raise UserError(
            "backbone: projector layers are not a backbone by themselves: name one, and let the method keep the layers"
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, hidden_dim) of images (N, C, H, W). Raises UserError for anything else."""
        if layers != 1 or any(each is not None for each in (mask, mask_token, keep)):
            raise UserError("backbone: with projector layers there are no tokens and no layers: keep none of them")
        return Features(pooled=self.head(self.backbone(x).pooled))

    def layer_modules(self) -> Sequence[nn.Module]:
        return self.backbone.layer_modules()
