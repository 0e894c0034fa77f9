"""Small modules and datasets as users of the Python API have them, and a run that takes a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import sslcli

#: A run of 5 steps an epoch.
TINY: dict[str, Any] = {
    "method": {"name": "simclr", "projector": {"output_dim": 8}},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"warmup_epochs": 0},
    "callbacks": {"knn": None, "online_probe": None, "tensorboard": None, "progress": None, "collapse": None},
    "checkpoints": {"every_epochs": 1},
    "training": {"batch_size": 8, "epochs": 2, "device": "cpu", "precision": "fp32", "log_every": 1},
}


class Net(nn.Module):
    """(N, 3, H, W) → (N, dim, 1, 1), with batch norm, whose buffers a forward pass in training mode changes."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.norm(self.conv(x)).relu())


class Arrays(torch.utils.data.Dataset[Any]):
    """Random uint8 images (size, size, 3) with labels, tinted by class."""

    def __init__(self, count: int, seed: int = 0, size: int = 16) -> None:
        draw = np.random.default_rng(seed)
        self.labels_of = draw.integers(0, 3, count)
        tint = np.eye(3, dtype=np.int64)[self.labels_of][:, None, None] * 120
        self.pixels = (draw.integers(0, 136, (count, size, size, 3)) + tint).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Any:
        return self.pixels[index], int(self.labels_of[index])


def tiny_run(output: Any, **changes: Any) -> sslcli.Run:
    """Trains `Net` on 40 `Arrays`, with `changes` of the sections; a changed `training` is merged."""
    training = {**TINY["training"], **changes.pop("training", {})}
    sections = {**TINY, "backbone": Net(), "data": Arrays(40), **changes}
    return sslcli.train(**sections | {"training": training}, output=output)


def states_equal(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
