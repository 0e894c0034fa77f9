"""What the methods' tests share: the smallest backbone, a method around it, batches, and plain gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, View

COUNT, STEPS, PER_EPOCH = 8, 10, 5
DATA = DataInfo("random", 3, (4, 4), (0.5,) * 3, (0.2,) * 3, ("a", "b", "c", "d"))
RUN = RunInfo(STEPS, PER_EPOCH, STEPS // PER_EPOCH, COUNT, 1, DATA)


class Pooled(Backbone):
    """Images of any size, pooled to 2 × 2 pixels → 6 features, with a batch norm that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=6)
        self.linear = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Pooled:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        pixels = F.adaptive_avg_pool2d(x, 2)
        return Features(self.norm(self.linear(pixels.flatten(1))), pixels.flatten(2).transpose(1, 2), (2, 2))


def make(
    cls: type[Method], seed: int = 0, backbone: Callable[[], Backbone] = Pooled, run: RunInfo = RUN, **options: Any
) -> Any:
    torch.manual_seed(seed)
    return cls(backbone(), cls.Options.parse(options), run).train()


def batch(*sizes: int, seed: int = 1, count: int = COUNT, method: Method | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [View(torch.randn(count, 3, size, size, generator=generator)) for size in sizes or (4, 4)]
    schedules = method.schedules() if method is not None else {}
    schedule = {name: torch.tensor(function(seed)) for name, function in schedules.items()}
    return Batch(views, torch.arange(count) % 4, torch.arange(count), schedule)


def train(method: Method, first: int, last: int, lr: float = 0.3) -> list[float]:
    """Plain gradient descent; optimizer steps `first` to `last` − 1, each with its own batch. Returns the losses."""
    losses = []
    for step in range(first, last):
        out = method(batch(seed=step, method=method))
        method.zero_grad()
        out.loss.backward()
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
            method.after_step([out.carry], Progress(step + 1, STEPS, PER_EPOCH))
        losses.append(out.loss.item())
    return losses


def layers(head: nn.Module) -> str:
    """A head's layers in order: `linear` or `linear+bias`, `bn`, `bn-β` or `bn-γβ`, and other classes' names."""
    names = []
    for part in head.modules():
        if isinstance(part, nn.Linear):
            names.append(type(part).__name__.lower() + ("+bias" if part.bias is not None else ""))
        elif isinstance(part, nn.BatchNorm1d):
            names.append(
                "bn" + ("-" if part.bias is None else "") + "γ" * (part.weight is None) + "β" * (part.bias is None)
            )
        elif not list(part.children()):
            names.append(type(part).__name__.lower())
    return " ".join(names)
