"""sslcli's side of the comparison: a method, its optimizer and its schedule in the real loop, in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from authors_masked import DIM, HEADS, PATCH
from authors_parts import BATCH, EPOCHS, Authors, Trunk
from conftest import TINY
from torch import Tensor, nn

from sslcli.backbones.vit import ViT
from sslcli.config.document import Document
from sslcli.config.resolve import resolve
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.method import Step
from sslcli.contracts.source import SourceBatch
from sslcli.modules import Prototypes, Queue
from sslcli.optimizers.groups import build_groups
from sslcli.plugins import registered
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build


class Tiny(Backbone, Trunk):
    """The transcriptions' network as a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=6)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Tiny:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        pixels = self.map(x)
        return Features(pixels.mean(dim=(2, 3)), pixels.flatten(2).transpose(1, 2), pixels.shape[2:])


class TinyViT(ViT):
    """The transcriptions' vision transformer as a backbone."""

    name, dim, heads = "TinyViT", DIM, HEADS


@dataclass(frozen=True)
class Case:
    """What the authors run, and sslcli's config for it: `method` with its options, `optimizer`, `schedule`.

    Attributes:
        loss, gradient: our loss and gradients as multiples of the authors'.
        sides: of the views.
        vit: the network is a vision transformer.
        still: parameters that the loss does not depend on.
    """

    authors: Callable[[], Authors]
    method: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    loss: float = 1.0
    gradient: float = 1.0
    sides: tuple[int, ...] = (8, 8)
    vit: bool = False
    still: tuple[str, ...] = ()


class Watched(Loop):
    """The loop on drawn views in float64; it keeps the loss, the labels, and the gradients before anything changes
    them."""

    sides: tuple[int, ...] = ()

    def make_views(self, source_batch: SourceBatch, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(100 + step)
        draw = [torch.randn(BATCH, 3, side, side, generator=generator, dtype=torch.float64) for side in self.sides]
        self.labels, self.images = source_batch.labels, draw
        return draw

    def _forward(self, *arguments: Any) -> Step:
        result = super()._forward(*arguments)
        self.loss = result.loss.item()
        return result

    def _update(self) -> None:
        self.gradients = {name: p.grad.clone() for name, p in self.method.named_parameters() if p.grad is not None}
        super()._update()


def start(case: Case, folder: Path) -> Watched:
    data = copy.deepcopy(TINY)
    data |= {
        "method": case.method,
        "optimizer": case.optimizer,
        "schedule": case.schedule,
        "views": {"preset": "simclr"} if len(case.sides) > 1 else [{"flip": 0.5}],
    }
    data |= {"backbone": {"name": "python:Tiny"}, "data": {"name": "shapes", "count": 40, "size": 16}}
    if case.vit:
        data |= {"backbone": {"name": "python:TinyViT", "patch_size": PATCH, "depth": 1}}
        data |= {"views": [{"size": case.sides[0], "flip": 0.5}]}
    data["training"] |= {"epochs": EPOCHS, "batch_size": BATCH, **case.training}
    with registered({("backbones", "Tiny"): Tiny, ("backbones", "TinyViT"): TinyViT}):
        session = build(resolve(Document(data, {(): "test"})))
    session.method.double()
    for module in session.method.modules():  # what was drawn and normalized in float32
        if isinstance(module, Prototypes):
            module.normalize()
        elif isinstance(module, Queue):
            module.keys.copy_(nn.functional.normalize(module.keys, dim=1))
    options = session.config.optimizer.options
    session = dataclasses.replace(
        session, optimizer=session.config.optimizer.cls.build(build_groups(session.method, options), options)
    )
    loop = Watched(session, Context(session, RunDirectory(folder)), 0)
    loop.sides = case.sides
    return loop


def state(loop: Watched) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in loop.method.state_dict().items()}
