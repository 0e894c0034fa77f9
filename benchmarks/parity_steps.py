"""Ten steps of ours and of lightly's from the same weights on the same views, in float64, for `parity.py steps`.

Ours are steps of the real loop; only the views are given. lightly's are those of `parity_lightly.py`. Both have
the optimizer, learning rates and momentum of `parity_settings.py`, a tiny network and small heads.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from page import table
from parity_settings import COMMON, SETTINGS
from torch import Tensor, nn

from sslcli.config.document import Document
from sslcli.config.resolve import RunConfig, resolve
from sslcli.contracts.method import Step
from sslcli.contracts.source import SourceBatch
from sslcli.modules import Prototypes, Queue
from sslcli.optimizers.groups import build_groups
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build

BATCH, SIDE, PER_EPOCH, EPOCHS = 8, 16, 5, 2
HEAD = {"hidden_dim": 12, "output_dim": 10}
#: Small heads, queues and prototypes; a queue for SwAV too, which is full in the second epoch.
SMALL: dict[str, dict[str, Any]] = {
    "simclr": {"projector": HEAD},
    "byol": {"projector": {**HEAD, "last_bias": True}, "predictor": {"hidden_dim": 12, "last_bias": True}},
    "simsiam": {"projector": {**HEAD, "layers": 3}, "predictor": {"hidden_dim": 4, "constant_lr": False}},
    "moco_v2": {"projector": HEAD, "queue_size": 16},
    "swav": {"projector": HEAD, "prototypes": 9, "frozen_steps": 2, "queue_size": 16, "queue_start_epoch": 1},
    "dino": {"head": {"hidden_dim": 12, "bottleneck_dim": 10, "prototypes": 9, "norm": "batch"}},
    "barlow_twins": {"projector": HEAD},
    "vicreg": {"projector": HEAD},
}


class Given(Loop):
    """The loop on drawn views; it keeps the loss."""

    def make_views(self, source_batch: SourceBatch, step: int = 0) -> list[Tensor]:
        return views_of(step)

    def _forward(self, *arguments: Any) -> Step:
        result = super()._forward(*arguments)
        self.loss = result.loss.item()
        return result


def views_of(step: int) -> list[Tensor]:
    """Two views of a batch: noise around common images, so that there is something to learn."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return [images + 0.5 * torch.randn(images.shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def config_of(method: str) -> RunConfig:
    settings = SETTINGS[method]
    data = {
        "method": {**settings["method"], **SMALL[method]},
        "optimizer": settings["optimizer"],
        "schedule": {"name": "cosine", "warmup": "linspace", "warmup_epochs": 1, "warmup_start": 1 / PER_EPOCH},
        "backbone": {**COMMON["backbone"], "width": 2},
        "data": {"name": "shapes", "count": BATCH * PER_EPOCH, "size": SIDE},
        "views": "simclr",
        "training": {
            "epochs": EPOCHS, "batch_size": BATCH, "precision": "fp32", "compile": "none", "workers": 0, "clip": None,
            "channels_last": False, "device": "cpu",
        },
        "callbacks": COMMON["callbacks"],
    }  # fmt: skip
    return resolve(Document(copy.deepcopy(data), {(): "parity"}))


def start(config: RunConfig, folder: Path) -> Given:
    session = build(config)
    session.method.double()
    for module in session.method.modules():  # what was normalized in float32
        if isinstance(module, Prototypes):
            module.normalize()
        elif isinstance(module, Queue):
            module.keys.copy_(nn.functional.normalize(module.keys, dim=1))
    options = config.optimizer.options
    optimizer = config.optimizer.cls.build(build_groups(session.method, options), options)
    session = dataclasses.replace(session, optimizer=optimizer)
    return Given(session, Context(session, RunDirectory(folder)), 0)


def compare(method: str) -> dict[str, float]:
    """Returns the largest differences over ten steps.

    Returns:
        `loss`, absolute; `weights`, of all parameters that are trained, absolute; `moved`, the largest distance of a
        weight from its start, to compare with; `steps` and `parameters`, how many were compared.
    """
    from parity_lightly import CLASSES, optimizer_and_schedule, our_name, step

    config = config_of(method)
    with tempfile.TemporaryDirectory() as folder:
        ours = start(config, Path(folder))
        info = ours.session.info
        backbone = config.backbone.cls.build(config.backbone.options, 3, SIDE)
        theirs = CLASSES[method](backbone, config.method.options, info.total_steps, info.steps_per_epoch).double()
        theirs.train()
        first = {name: value.detach().clone() for name, value in ours.method.state_dict().items()}
        own = theirs.state_dict()
        theirs.load_state_dict({name: first.get(our_name(name), value) for name, value in own.items()})
        if method == "moco_v2":
            theirs.criterion.memory_bank.bank.copy_(first["queues.0.keys"])
        optimizer, schedule = optimizer_and_schedule(theirs, config)
        loss, weights = 0.0, 0.0
        parameters = dict(ours.method.named_parameters())
        trained = {our_name(name): value for name, value in theirs.named_parameters() if value.requires_grad}
        expected = {name for name, value in parameters.items() if value.requires_grad}
        if trained.keys() != expected:
            raise AssertionError(f"{method}: not the same parameters: {sorted(trained.keys() ^ expected)}")
        for number in range(info.total_steps):
            ours.step()
            found = step(theirs, optimizer, schedule, views_of(number), number).item()
            loss = max(loss, abs(ours.loss - found))
            if method == "swav":  # lightly's are brought back to length 1 when the next step begins
                theirs.prototypes.normalize()
            for name, value in trained.items():
                weights = max(weights, (parameters[name] - value).abs().max().item())
    moved = max((parameters[name] - first[name]).abs().max().item() for name in trained)
    return {"loss": loss, "weights": weights, "moved": moved, "steps": info.total_steps, "parameters": len(trained)}


def table_of(found: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the table in Markdown."""
    header = ["method", "largest difference of the loss", "of a weight", "largest change of a weight"]
    rows = [
        [
            f"`{method}`",
            *(f"{each[key]:.1e}".replace("e-", "e−") for key in ("loss", "weights")),
            f"{each['moved']:.2g}",
        ]
        for method, each in found.items()
    ]
    return table(header, rows)
