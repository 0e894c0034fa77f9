"""A small DINO over random views of two sizes, for its tests."""

from __future__ import annotations

from typing import Any

from method_helpers import RUN, make
from method_helpers import batch as any_batch
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.method import Batch, RunInfo
from sslcli.methods.dino import DINO
from sslcli.modules.drop_path import DropPath


class Pooled(Backbone):
    """Pixels of any size → 6 features, with a batch norm and two residual branches that drop-path can skip."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=6)
        self.linear = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), DropPath(rate)) for _ in range(2))
        self.calls: list[tuple[int, int]] = []  # images and side of each pass

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Pooled:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        self.calls.append((len(x), x.shape[-1]))
        h = self.norm(self.linear(x.mean(dim=(2, 3))))
        for branch in self.branches:
            h = h + branch(h)
        return Features(h)


def build(rate: float = 0.0, run: RunInfo = RUN, **options: Any) -> DINO:
    head = {"hidden_dim": 8, "bottleneck_dim": 5, "prototypes": 7, **options.pop("head", {})}
    # Without drop-path, unless a test asks: then two passes give the same.
    return make(DINO, backbone=lambda: Pooled(rate), run=run, **{"drop_path": 0.0, "head": head, **options})


def batch(method: DINO, step: int = 0) -> Batch:
    """Two global views and three local ones."""
    return any_batch(4, 4, 2, 2, 2, seed=step, method=method)
