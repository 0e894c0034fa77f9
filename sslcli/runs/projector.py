"""The projector that a backbone was trained with, from a checkpoint of its run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.contracts.method import Method, RunInfo
from sslcli.plugins import load

from . import files
from .backbone_file import build_backbone
from .checkpoint import understood

_METHOD = "method."


def load_projector(trained: Trained) -> nn.Module:
    """Builds the method that a backbone was trained with, and loads the trained weights into its projector.

    It is the projector of the exported encoder: the teacher's for methods that export their teacher.

    Args:
        trained: loaded from a run or a checkpoint.

    Returns:
        (N, D) → (N, E), on the CPU, in `eval()`.

    Raises:
        UserError: the file is not a checkpoint, the method is not installed or has changed, or has no projector.
    """
    source, name = trained.source, trained.card.method
    document = files.read_document(source) if source is not None else {}
    if source is None or "encoder" not in document:
        where = f"{source}: " if source is not None else ""
        raise UserError(f"{where}holds only a backbone; name the run or one of its checkpoints to export a projector")
    parent = document["encoder"].removeprefix(_METHOD).rstrip(".").rpartition(".")[0]
    module = f"{parent}.projector" if parent else "projector"
    prefix = f"{_METHOD}{module}."
    state, _ = files.read(source, prefix)
    if not state:
        raise UserError(f"{source}: the method {name!r} has no projector")
    with understood(source):
        projector = _build(source, trained.card, document["config"]).get_submodule(module)
    try:
        projector.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: its projector does not fit the installed method {name!r} ({reason})") from error
    return projector.eval().requires_grad_(False)


def _build(source: Path, card: BackboneCard, config: dict[str, Any]) -> Method:
    options = dict(config["method"])
    cls: type[Method] = load("methods", options.pop("name"))
    data = DataInfo(card.dataset, card.channels, None, card.mean, card.std)
    training = config["training"]
    # A projector does not depend on the run's length or batch.
    epochs, batch_size = int(training["epochs"]), int(training["batch_size"])
    run = RunInfo(max(1, card.step), 1, epochs, batch_size, 1, data, (card.image_size,))
    plain = dataclasses.replace(card, head=None)  # the method itself adds kept layers to its backbone
    backbone = build_backbone(source, plain, lambda built: None)
    try:
        with torch.random.fork_rng(devices=[]):
            return cls(backbone, cls.Options.parse(options).as_in_run(options), run)
    except (ValidationError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: the installed method {card.method!r} cannot be built ({reason})") from error
