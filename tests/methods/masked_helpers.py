"""What the tests of masked methods share: the method around a small vision transformer, and its batches."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
import torch
from method_helpers import COUNT, RUN, make
from torch import Tensor

from sslcli.contracts.method import Batch, DrawKeys, Method, Progress, View
from sslcli.plugins import load
from sslcli.testing.stand_ins import small_vit


def masked(name: str, side: int = 16, **options: Any) -> Any:
    """A method on a ViT with patches of 4 pixels, for views of `side` pixels."""
    run = dataclasses.replace(RUN, view_sizes=(side,))
    return make(load("methods", name), backbone=lambda: small_vit(side), run=run, **options)


def images(side: int = 16, count: int = COUNT) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def masked_batch(method: Method, view: Tensor, step: int = 0) -> Batch:
    index = torch.arange(len(view))
    schedule = {name: torch.tensor(at(step)) for name, at in method.schedules().items()}
    return Batch([View(view)], None, index, schedule, DrawKeys(seed=3, step=step))


def altered(view: Tensor, where: Tensor) -> Tensor:
    """The images with other pixels in the patches where the mask (N, L) is True."""
    side = view.shape[-1] // 4
    pixels = where.view(-1, 1, side, side).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.where(pixels, view.flip(0) + 1, view)


def ramps(count: int = 64) -> Tensor:
    """Shades that rise in a direction of each image's own: neighbors tell what is hidden."""
    slopes = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    across, down = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="xy")
    return (slopes[:, :1] * across + slopes[:, 1:] * down).expand(-1, 3, -1, -1)


def learned(method: Method, steps: int, lr: float) -> list[dict[str, float]]:
    """The metrics of each step of training on ramps."""
    view, optimizer, metrics = ramps(), torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=lr), []
    for step in range(steps):
        found = method(masked_batch(method, view, step))
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        method.after_step([found.carry], Progress(step + 1, steps, steps))
        metrics.append({name: value.item() for name, value in found.metrics.items()})
    return metrics


def given_to(loss: str, method: Method, view: Tensor) -> tuple[Tensor, Tensor]:
    """The first two arguments of a loss of the method's module, which is watched: predictions and their targets."""
    module, kept = sys.modules[type(method).__module__], []
    plain = getattr(module, loss)

    def watched(prediction: Tensor, target: Tensor, *others: Any) -> Any:
        kept.append((prediction.detach(), target))
        return plain(prediction, target, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, loss, watched)
        method(masked_batch(method, view))
    return kept[0]
