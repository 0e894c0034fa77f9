"""`sslcli.train`: what `ssl train` reads from a YAML file is given here as keywords.

A section is a name, a mapping, or an object where a plugin is named. Options are those of the config.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides, as_arguments, merge, override, read_config
from sslcli.config.resolve import RunConfig, resolve
from sslcli.config.schema import TrainingOptions
from sslcli.contracts.errors import UserError
from sslcli.logs import on_console
from sslcli.plugins import registered, suggest
from sslcli.storage import expanded

from .objects import Objects, by_key
from .run import Run
from .views import count_views

log = logging.getLogger(__name__)

#: The source that messages give for an option that was set in Python.
_SOURCE = "sslcli.train"


def train(
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: Any = None,
    backbone: Any = None,
    data: Any = None,
    views: Any = None,
    optimizer: Any = None,
    schedule: Any = None,
    training: Mapping[str, Any] | None = None,
    checkpoints: Mapping[str, Any] | None = None,
    callbacks: Any = None,
    seed: int | None = None,
    labeled: tuple[Any, Any] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Run:
    """Trains like `ssl train`: `train(method="simclr", backbone="resnet18", data="cifar10", epochs=10)`.

    Args:
        config: path of a YAML config, or the name of an example, to start from; the arguments below change it.
        overrides: options by dotted key, applied last: `{"optimizer.lr": 0.1}`.
        method: this and the following are the sections of the config: a name, or a mapping with `name` and options.
            In place of a name, a class that a plugin could register (a subclass of `Method`, for example) also works.
        backbone: likewise, or any `nn.Module`: (N, C, H, W) → (N, D) or (N, D, 1, 1). A copy of it is trained,
            without its classifier if it is a model of torchvision or timm.
        data: likewise, or any object with `__len__` and `__getitem__` whose items are images or begin with one: PIL,
            arrays (H, W, C), tensors (C, H, W); uint8, or floats in [0, 1]. Or a list of paths of image files.
        views: likewise, or a callable on a PIL image, or a list of them, one for each view: they return an image, such
            as a tensor (C, S, S), and are called by worker processes. What is not described here is as in the config.
        callbacks: options by name, as in the config; or a list of names and of objects with some of `Callback`'s hooks.
        labeled: with `data` as an object: datasets (train, test) with labels, for evaluations and the kNN monitor.
        output: run directory; by default `runs/CONFIG-HASH`, or `runs/METHOD-DATA-HASH` without a config.
        resume: resume the run there; start it if there is none. Objects must be given again.
        options: options of the section `training`: `epochs=10, batch_size=64`.

    Raises:
        UserError: the input is invalid; one line for each problem.
        SslError: the run failed; its last checkpoint is intact.
    """
    from sslcli.runs.directory import default_directory
    from sslcli.training.train import train as run_training

    sections = {
        "method": method, "backbone": backbone, "data": data, "views": views, "optimizer": optimizer,
        "schedule": schedule, "training": training, "checkpoints": checkpoints, "callbacks": callbacks, "seed": seed,
    }  # fmt: skip
    elsewhere = {}
    for name in options.keys() - TrainingOptions.model_fields.keys():
        meant = suggest(name, [*sections, "labeled", "output", "resume"])
        if meant:
            raise UserError(f"{_SOURCE}: {name}: unknown keyword{meant}")
        if not suggest(name, list(TrainingOptions.model_fields)):  # reported with the section that has it
            elsewhere[name] = options.pop(name)
    objects = Objects(labeled)
    with on_console():
        plain = objects.sections({**sections, "training": {**(training or {}), **options} or None, **elsewhere})
    path = None if config is None else expanded(config)
    with on_console(), registered(objects.classes):
        document = _document(path, plain, by_key(overrides))
        count_views(document.data)
        resolved = _without_workers(resolve(document), objects)
        words = [resolved.method.name, resolved.data.name]
        name = path.stem if path else "-".join(word.rpartition(":")[2].replace("/", "-") for word in words)
        directory = expanded(output) if output is not None else default_directory(resolved, name)
        command = [_SOURCE, *([str(path)] if path else [])]
        result = run_training(resolved, directory, resume=resume, command=command)
        if result.signal is not None:
            log.info(f"interrupted and saved at step {result.step} of {result.total_steps}; resume with resume=True")
        return Run._trained(result, objects.classes)


#: `train` under the name that other libraries have for it: `from_config("config.yaml", optimizer={"lr": 0.1})`.
from_config = train


def _document(path: Path | None, plain: dict[str, Any], overrides: dict[str, Any]) -> Document:
    def change(each: Document) -> None:
        merge(each, Document(copy.deepcopy(plain), {(section,): _SOURCE for section in plain}))
        apply_overrides(each, as_arguments(overrides))
        # `apply_overrides` names the command line as the source of what it sets.
        each.where = {key: _SOURCE if where == "command line" else where for key, where in each.where.items()}

    document = Document({}, {(): _SOURCE}) if path is None else read_config(path, [])
    override(document, change)
    return document


def _without_workers(config: RunConfig, objects: Objects) -> RunConfig:
    """Sets `training.workers` to 0 for a dataset or a callable that cannot be sent to worker processes."""
    obstacles = objects.worker_obstacles() if config.training.workers != 0 else []
    for what, obstacle in obstacles:
        log.info(f"{what} without worker processes: it cannot be sent to them ({obstacle})")
    training = config.training.model_copy(update={"workers": 0}) if obstacles else config.training
    return dataclasses.replace(config, training=training)
