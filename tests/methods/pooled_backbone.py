"""The smallest backbone that the methods' own tests train."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features


class Pooled(Backbone):
    """Images of any size, pooled to 2 × 2 pixels → 6 features, with a batch norm that counts how often it is passed."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=6)
        self.linear = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Pooled:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.norm(self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1))))
