"""The command line's verbs as functions, for scripts and notebooks; reached as `sslcli.train` and so on.

What the command line reads from a YAML file is given here as keywords: a name, a mapping, or an object where a plugin
is named. Options are those of the config; there is no second list of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides, as_arguments, merge, read_config
from sslcli.config.resolve import RunConfig, resolve
from sslcli.config.schema import TrainingOptions
from sslcli.contracts.errors import UserError
from sslcli.logs import on_console
from sslcli.plugins import PYTHON, registered, suggest

from .objects import Classes, Objects, as_plain, data_classes
from .run import Run

if TYPE_CHECKING:
    from torch import nn

    from sslcli.contracts.backbone import Backbone
    from sslcli.contracts.evaluation import EvaluationResult
    from sslcli.contracts.export import Exported
    from sslcli.evaluation.tables import Row
    from sslcli.training.train import TrainResult

    Target: TypeAlias = Run | TrainResult | str | Path

log = logging.getLogger(__name__)

__all__ = ["Run", "evaluate", "evaluate_all", "export", "from_config", "load_backbone", "train"]

#: What messages call the place of an option that was written in Python.
_SOURCE = "sslcli.train"
#: The name of data sets that are given to be evaluated on; no class can be called so.
EVALUATED = "for-evaluation"


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
    """Trains as `ssl train` does: `train(method="simclr", backbone="resnet18", data="cifar10", epochs=10)`.

    Args:
        config: path of a YAML config to start from; what follows changes it.
        overrides: options by dotted key, applied last: `{"optimizer.lr": 0.1}`.
        method: this and the next ones are the config's sections: a name, or a mapping with `name` and options; in the
            place of a name also a class that a plugin would announce (a subclass of `Method`, say).
        backbone: likewise, or any `nn.Module`: (N, C, H, W) → (N, D) or (N, D, 1, 1). A copy of it is trained.
        data: likewise, or any object with `__len__` and `__getitem__` whose items are images or begin with one: PIL,
            arrays (H, W, C), tensors (C, H, W); uint8, or floats in [0, 1].
        views: as in the config.
        optimizer: as in the config.
        schedule: as in the config.
        training: as in the config.
        checkpoints: as in the config.
        callbacks: options by name, as in the config; or a list of names and of objects with some of `Callback`'s hooks.
        seed: as in the config.
        labeled: with `data` as an object: data sets (train, test) with labels, for evaluations and the kNN monitor.
        output: run directory; by default `runs/CONFIG-HASH`, or `runs/METHOD-DATA-HASH` without a config.
        resume: go on with the run there; start it where there is none. Objects must be given again.
        options: options of the section `training`: `epochs=10, batch_size=64`.

    Raises:
        UserError: something about the input, in one line or a line for each problem.
        SslError: the run failed; its last checkpoint is good.
    """
    sections = {
        "method": method, "backbone": backbone, "data": data, "views": views, "optimizer": optimizer,
        "schedule": schedule, "training": {**(training or {}), **options} or None, "checkpoints": checkpoints,
        "callbacks": callbacks, "seed": seed,
    }  # fmt: skip
    for name in options.keys() - TrainingOptions.model_fields.keys():
        meant = suggest(name, [*sections, "labeled", "output", "resume"])
        if meant:
            raise UserError(f"{_SOURCE}: {name}: unknown keyword{meant}")
    objects = Objects(labeled)
    plain = objects.sections(sections)
    path = None if config is None else Path(config).expanduser()
    with on_console(), registered(objects.classes):
        resolved = resolve(_document(path, plain, _by_key(overrides)))
        resolved = _without_workers(resolved, objects)
        return _train(resolved, path, output, objects, resume=resume)


def from_config(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    **sections: Any,
) -> Run:
    """Trains what a YAML config says: `ssl train PATH`; `sections` are those of `train`, and change it."""
    return train(path, overrides, output=output, resume=resume, **sections)


def _document(path: Path | None, plain: dict[str, Any], overrides: dict[str, Any]) -> Document:
    document = Document({}, {(): _SOURCE}) if path is None else read_config(path, [])
    merge(document, Document(plain, {(section,): _SOURCE for section in plain}))
    apply_overrides(document, as_arguments(overrides))
    # What the command line's rules have put in was not written on a command line.
    document.where = {key: _SOURCE if place == "command line" else place for key, place in document.where.items()}
    return document


def _without_workers(config: RunConfig, objects: Objects) -> RunConfig:
    """Reads the user's data in this process where others could not get them."""
    from dataclasses import replace

    given = objects.given.get("train")
    obstacle = given.worker_obstacle() if given is not None and config.training.workers != 0 else None
    if given is None or obstacle is None:
        return config
    log.info(f"data: {given.title} is read without worker processes: they could not be given it ({obstacle})")
    return replace(config, training=config.training.model_copy(update={"workers": 0}))


def _train(config: RunConfig, path: Path | None, output: str | Path | None, objects: Objects, *, resume: bool) -> Run:
    from sslcli.cli.train import default_output
    from sslcli.training.train import train as run_training

    words = [config.method.name, config.data.name]
    name = path or Path("-".join(word.rpartition(":")[2].replace("/", "-") for word in words) + ".yaml")
    directory = Path(output).expanduser() if output is not None else default_output(name, config)
    command = [_SOURCE, *([str(path)] if path is not None else [])]
    result = run_training(config, directory, resume=resume, command=command)
    if result.signal is not None:
        log.info(f"interrupted and saved at step {result.step} of {result.total_steps}; go on with resume=True")
    return Run._trained(result, objects.classes)


@overload
def load_backbone(path: Target, into: None = None) -> Backbone: ...
@overload
def load_backbone(path: Target, into: nn.Module) -> nn.Module: ...
def load_backbone(path: Target, into: nn.Module | None = None) -> nn.Module:
    """Restores a trained backbone, from a file alone.

    Args:
        path: a backbone file (`backbone.safetensors`), a checkpoint, a run directory, or a `Run`.
        into: for a backbone that was given as a module: one like it, on the CPU, which is filled.

    Returns:
        the module, on the CPU, in `eval()`; called with normalized images (N, C, H, W) it returns `Features`, whose
        `pooled` is (N, D). A backbone that was given as a module comes as it is: `into`, or of a `Run` a copy of what
        was given.

    Raises:
        sslcli.contracts.errors.UserError: nothing there, damaged, its backbone plugin is not installed, or it was a
            module and `into` is missing.
    """
    from sslcli.backbones.wrapped import WrappedBackbone, wrap
    from sslcli.runs.trained import load_trained, stored_card

    place, classes = _path(path), _classes([path], {})
    if into is not None:
        name = str(stored_card(place).backbone.get("name"))
        if not name.startswith(f"{PYTHON}:"):
            raise UserError(f"{place}: its backbone is {name!r}, which needs no module to be loaded into")
        classes["backbones", name.removeprefix(f"{PYTHON}:")] = wrap(into, name, in_place=True)
    with on_console(), registered(classes):
        backbone = load_trained(place).backbone
    return backbone.network if isinstance(backbone, WrappedBackbone) else backbone


def evaluate(
    target: Target,
    method: str = "knn",
    overrides: Mapping[str, Any] | None = None,
    *,
    train: Any = None,
    eval: Any = None,  # noqa: A002
    device: str = "auto",
    seed: int = 0,
    seeds: int = 1,
) -> EvaluationResult:
    """Evaluates as `ssl eval` does: `evaluate(run, "knn", {"k": [20]}).metrics["top1"]`.

    Args:
        target: a `Run`, a run directory, a checkpoint, a backbone file, or a network by name.
        method: name of the evaluator.
        overrides: its options, and those of the data (`"data.limit"`), by dotted key.
        train: labeled data set, as an object, to fit on; together with `eval`, in the place of the run's own data.
        eval: likewise, to judge on.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        seed: the first seed for whatever the evaluation draws.
        seeds: how many; metrics are means then, and `spread` has their standard deviations.

    Raises:
        UserError: nothing trained there, no such evaluator, wrong options, no labeled data.
    """
    if method == "all":
        raise UserError("evaluate makes one evaluation; sslcli.evaluate_all(run) makes all of them")
    rows = evaluate_all(target, method, overrides, train=train, eval=eval, device=device, seed=seed, seeds=seeds)
    return rows[0].result


def evaluate_all(
    targets: Target | Sequence[Target],
    method: str = "all",
    overrides: Mapping[str, Any] | None = None,
    *,
    train: Any = None,
    eval: Any = None,  # noqa: A002
    device: str = "auto",
    seed: int = 0,
    seeds: int = 1,
) -> list[Row]:
    """Evaluates one target or several, on the same data, by one evaluator or all of them.

    Returns:
        a row for each target and evaluator, with `target`, `method` and `result`.

    Raises:
        UserError: as `evaluate`.
    """
    from sslcli.evaluation.evaluate import evaluate_all as run_evaluations

    chosen = _by_key(overrides)
    if (train is None) != (eval is None):
        raise UserError("train and eval: data sets as objects go together; give both")
    given = {} if train is None else {"labeled": train, "test": eval}
    if given:
        chosen["data.name"] = f"{PYTHON}:{EVALUATED}"
    several = list(targets) if isinstance(targets, Sequence) and not isinstance(targets, str) else [targets]
    words = as_arguments(chosen)
    with on_console(), registered(_classes(several, given)):
        paths = [_path(target) for target in several]
        return run_evaluations(paths, method, words, device=device, seed=seed, seeds=seeds)


def _by_key(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(overrides or {}, Mapping):
        raise UserError(f"overrides: should be a mapping, of options by dotted key, not a {type(overrides).__name__}")
    plain: dict[str, Any] = as_plain("overrides", dict(overrides or {}))
    return plain


def _classes(targets: Sequence[Any], datasets: Mapping[str, Any]) -> Classes:
    """What the targets' configs call `python:…`, and data sets to evaluate on by split."""
    classes: Classes = dict(data_classes(datasets, EVALUATED)[1]) if datasets else {}
    for target in targets:
        for key, cls in (target.classes if isinstance(target, Run) else {}).items():
            if classes.setdefault(key, cls) is not cls:
                raise UserError(f"two of the runs call different objects {PYTHON}:{key[1]}: evaluate them one by one")
    return classes


def export(target: Target, exporter: str = "backbone", path: str | Path | None = None, **options: Any) -> Exported:
    """Exports as `ssl export` does; replaces `path` if it exists.

    Args:
        target: a `Run`, a run directory, a checkpoint or a backbone file.
        exporter: its name.
        path: the file; by default in the run directory, or beside the file.
        options: the exporter's.

    Returns:
        the file's path, and Python lines that load it (`how_to_load`).

    Raises:
        UserError: unknown exporter, nothing trained there, wrong options, or a place that cannot be written.
    """
    from sslcli.evaluation.export import export as run_export

    arguments = as_arguments(as_plain("options", options))
    with on_console(), registered(_classes([target], {})):
        return run_export(exporter, _path(target), None if path is None else Path(path), arguments)


def _path(target: Target) -> Path:
    if isinstance(target, str | Path):
        return Path(target).expanduser()
    directory = getattr(target, "directory", None)
    if not isinstance(directory, Path):
        raise UserError(f"should be a Run, a path or a name, not {type(target).__name__}")
    return directory
