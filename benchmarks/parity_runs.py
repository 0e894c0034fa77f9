"""One run of either tool for `parity.py`: trains, and writes the backbone before and after into a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parity_settings import CONFIGS, overrides, resolved

import sslcli
from sslcli.config.resolve import RunConfig
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Progress
from sslcli.runs.backbone_file import save_backbone
from sslcli.training.setup import Session, build

BEFORE, AFTER = "before.safetensors", "after.safetensors"


def _save(path: Path, session: Session, backbone: Backbone) -> None:
    info = session.info
    save_backbone(path, backbone, session.card(Progress(0, info.total_steps, info.steps_per_epoch)))


def _config(run: dict[str, Any], root: Path) -> RunConfig:
    return resolved(run["method"], run["kind"], run["images"], run["epochs"], root, run["seed"])


def train_ours(run: dict[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """Returns the first and the last logged loss, means over a part of an epoch, and what `auto` has become."""
    session = build(_config(run, root), compiled=False)
    _save(folder / BEFORE, session, session.method.encoder())
    values = overrides(run["method"], run["kind"], run["images"], run["epochs"])
    values |= {"data.root": str(root), "seed": run["seed"]}
    trained = sslcli.train(CONFIGS / f"{run['method']}.yaml", values, output=folder / "run")
    if trained.signal is not None:  # an interrupted run is not a result
        raise SystemExit(128 + trained.signal)
    trained.export("backbone", folder / AFTER)
    lines = [line for line in trained.metrics if "loss" in line]
    training = trained.config["training"]
    return {
        "loss_first": lines[0]["loss"], "loss_last": lines[-1]["loss"], "steps": trained.step,
        "precision": training["precision"], "compile": training["compile"],
    }  # fmt: skip


def train_lightly(run: dict[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """Returns the losses of the same steps."""
    from parity_lightly import CLASSES, optimizer_and_schedule, step
    from parity_lightly_views import batches

    config = _config(run, root)
    session = build(config, compiled=False)
    torch.manual_seed(run["seed"])
    backbone = config.backbone.cls.build(config.backbone.options, 3, config.views[0].size)
    info, every = session.info, config.training.log_every
    method = CLASSES[run["method"]](backbone, config.method.options, info.total_steps, info.steps_per_epoch)
    _save(folder / BEFORE, session, method.encoder())
    optimizer, schedule = optimizer_and_schedule(method, config)
    method.train()
    losses = [
        step(method, optimizer, schedule, views, number)
        for number, views in enumerate(batches(config, root, info.data.mean, info.data.std))
    ]
    _save(folder / AFTER, session, method.encoder())
    if not torch.stack(losses).isfinite().all():
        raise SystemExit("the loss is not finite")
    first, last = torch.stack(losses[:every]).mean(), torch.stack(losses[-every:]).mean()
    return {"loss_first": first.item(), "loss_last": last.item(), "steps": len(losses)}


TRAIN: dict[str, Callable[[dict[str, Any], Path, Path], dict[str, Any]]] = {
    "ours": train_ours,
    "lightly": train_lightly,
}


def evaluate(folder: Path, root: Path, images: int) -> dict[str, float]:
    """Top-1 as fractions: kNN before and after, and a linear probe after."""
    data = {"data": {"name": "cifar10", "root": str(root), "limit": images}}

    def top1(name: str, evaluator: str) -> float:
        return float(sslcli.evaluate(folder / name, evaluator, data).metrics["top1"])

    return {"knn_before": top1(BEFORE, "knn"), "knn": top1(AFTER, "knn"), "linear": top1(AFTER, "linear")}
