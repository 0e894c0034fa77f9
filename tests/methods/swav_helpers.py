"""A small SwAV, batches of two sizes, and plain training, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from method_helpers import COUNT, DATA, PER_EPOCH, STEPS, make
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.method import Batch, Progress, RunInfo, Step, View
from sslcli.methods.swav import SwAV

SMALL: dict[str, Any] = {"projector": {"hidden_dim": 12, "output_dim": 6}, "prototypes": 10, "queue_size": 0}


class Small(Backbone):
    """A convolution with a batch norm: any size → 7 features."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=7)
        self.convolution = nn.Conv2d(3, 7, 3)
        self.norm = nn.BatchNorm2d(7)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Small:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.norm(self.convolution(x)).relu().mean(dim=(2, 3)))


def build(batch_size: int = COUNT, **options: Any) -> SwAV:
    run = RunInfo(STEPS, PER_EPOCH, STEPS // PER_EPOCH, batch_size, 1, DATA)
    return make(SwAV, backbone=Small, run=run, **{**SMALL, **options})


def batch(seed: int = 1, sides: tuple[int, ...] = (8, 8, 5, 5, 5)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(COUNT, 3, 8, 8, generator=generator)
    views = [images[..., :side, :side] + 0.3 * torch.randn(COUNT, 3, side, side, generator=generator) for side in sides]
    return Batch([View(view) for view in views], None, torch.arange(COUNT), {})


def descend(method: SwAV, first: int, last: int, lr: float = 0.1) -> Iterator[Step]:
    """Plain gradient descent; steps `first` to `last` − 1, each with its own batch. Yields before the step is made."""
    for step in range(first, last):
        out = method(batch(seed=step))
        yield out
        method.zero_grad()
        out.loss.backward()
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
        method.after_step([out.carry], Progress(step + 1, STEPS, PER_EPOCH))


def embed(method: SwAV, data: Batch) -> list[Tensor]:
    """Embeddings view by view, with the batch norms' groups written out: each resolution, and all views in the head."""
    sizes = sorted({view.image.shape[-1] for view in data.views}, reverse=True)
    groups = [torch.cat([view.image for view in data.views if view.image.shape[-1] == size]) for size in sizes]
    features = torch.cat([method.backbone(group).pooled for group in groups])
    return list(F.normalize(method.projector(features), dim=1).split(COUNT))
