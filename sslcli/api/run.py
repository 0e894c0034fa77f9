"""`Run`, a run directory as an object; `evaluate`, `evaluate_all` and `export`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sslcli.config.document import read_file
from sslcli.config.merge import as_arguments
from sslcli.config.schema import PLUGIN_SECTIONS
from sslcli.contracts.errors import UserError
from sslcli.logs import on_console
from sslcli.plugins import PYTHON, registered
from sslcli.storage import expanded

from .objects import Classes, Objects, as_plain, by_key, data_classes
from .shown import plot_log, table_rows

if TYPE_CHECKING:
    from torch import nn

    from sslcli.contracts.evaluation import EvaluationResult
    from sslcli.contracts.export import BackboneCard, Exported
    from sslcli.evaluation.tables import Row
    from sslcli.training.train import TrainResult

    Target: TypeAlias = "Run | str | Path"

#: The name of datasets that are given to be evaluated on; no class can have this name.
EVALUATED = "for-evaluation"


class Run:
    """A run directory, and the objects that its config names.

    Attributes:
        path: the directory.
        classes: plugin classes that wrap the objects, by group and the name after `python:` in the config.
        signal: number of the signal that interrupted the training run; None if it finished, or was opened.
        total_steps: optimizer steps in all epochs; None for a run that was opened.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        backbone: Any = None,
        data: Any = None,
        labeled: tuple[Any, Any] | None = None,
    ) -> None:
        """Opens an existing run.

        Args:
            path: the run directory.
            backbone: the module (or class) that the run was made with; it is not changed.
            data: the dataset that the run was made with.
            labeled: its (train, test) pair to evaluate with.

        Raises:
            UserError: there is no run, or it was made without such an object.
        """
        self.path = expanded(path)
        self.signal: int | None = None
        self.total_steps: int | None = None
        self._step: int | None = None
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path}: is not a run directory (it has no config.yaml)")
        self.classes: Classes = {}
        objects = Objects(labeled)
        for section, plain in objects.sections({"backbone": backbone, "data": data}).items():
            group = PLUGIN_SECTIONS[section]
            cls = objects.classes.get((group, plain["name"].removeprefix(f"{PYTHON}:")))
            wanted = self.config[section]["name"]
            if cls is None or not wanted.startswith(f"{PYTHON}:"):
                raise UserError(f"{self.path}: {section}: the run was made with {wanted!r}, not with an object")
            self.classes[group, wanted.removeprefix(f"{PYTHON}:")] = cls

    @classmethod
    def _trained(cls, result: TrainResult, classes: Classes) -> Run:
        """What `train` returns: a run with its objects, and the step at which training ended."""
        run = cls(result.directory)
        run.classes, run.signal = classes, result.signal
        run._step, run.total_steps = result.step, result.total_steps
        return run

    def __repr__(self) -> str:
        config = self.config
        what = f"{config['method']['name']}, {config['backbone']['name']} on {config['data']['name']}"
        of = f" of {self.total_steps:,}" if self.total_steps is not None else ""
        return f"<Run {str(self.path)!r}: {what}, step {self.step:,}{of}>"

    def _repr_html_(self) -> str:
        from sslcli.contracts.evaluation import html_table  # imports torch

        of = f" of {self.total_steps:,}" if self.total_steps is not None else ""
        return html_table(f"Run {self.path}", table_rows(self.config, f"{self.step:,}{of}", self.metrics))

    def plot(self) -> Any:
        """Returns a matplotlib figure of loss, learning rate and kNN accuracy over the steps; UserError without
        matplotlib (extra `plots`)."""
        return plot_log(self.metrics, str(self.path))

    @property
    def config(self) -> dict[str, Any]:
        """Every option with its value, as plain data; the content of `config.yaml`."""
        return read_file(self.path / "config.yaml").data

    @property
    def step(self) -> int:
        """Optimizer steps done; for a run that was opened, the step of its newest checkpoint (0 if it has none)."""
        if self._step is not None:
            return self._step
        from sslcli.runs.layout import list_checkpoints, step_of

        newest = next(iter(list_checkpoints(self.path / "checkpoints")), None)
        return 0 if newest is None else step_of(newest)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The log: a dict for each line, with `step`, `epoch` and the logged values."""
        from sslcli.runs.metrics import read_metrics

        return read_metrics(self.path / "metrics.jsonl")

    def metrics_frame(self) -> Any:
        """Returns the log as a pandas DataFrame, with missing values; UserError without pandas."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise UserError("metrics_frame needs pandas: pip install pandas, or use run.metrics") from error
        return pandas.DataFrame(self.metrics)

    @property
    def card(self) -> BackboneCard:
        """The description stored with the backbone: normalization (`mean`, `std`), `image_size`, `feature_dim`, …"""
        from sslcli.runs.trained import stored_card

        return stored_card(self.path)

    def backbone(self, module: nn.Module | None = None) -> nn.Module:
        """Returns the trained backbone, on the CPU, in `eval()`.

        Args:
            module: for a run that was made with a module, a module like it, which receives the weights and is
                returned; by default a copy of the given one.

        Returns:
            your own module, or for a backbone by name one whose result has `pooled` (N, D).

        Raises:
            UserError: nothing trained yet, or the module is missing or does not fit.
        """
        from .load import load_backbone

        return load_backbone(self, module) if module is not None else load_backbone(self)

    def evaluate(self, method: str = "knn", *, train: Any = None, eval: Any = None, **options: Any) -> EvaluationResult:  # noqa: A002
        """Evaluates like `sslcli.evaluate`: `run.evaluate("linear").metrics["top1"]`.

        Args:
            method: name of the evaluator.
            train: labeled dataset, as an object, to fit on; the run's own data by default.
            eval: likewise, the test images.
            options: `device`, `seed`, `seeds`, `shared`; the evaluator's options by name; `data={…}` for other data.
        """
        known = {name: options.pop(name) for name in ("device", "seed", "seeds", "shared") if name in options}
        return evaluate(self, method, options, train=train, eval=eval, **known)

    def export(self, exporter: str = "backbone", path: str | Path | None = None, **options: Any) -> Exported:
        """Exports like `sslcli.export`; by default to the file in the run directory that `ssl export` writes."""
        return export(self, exporter, path, **options)


def evaluate(
    target: Target | None = None,
    method: str = "knn",
    overrides: Mapping[str, Any] | None = None,
    *,
    train: Any = None,
    eval: Any = None,  # noqa: A002
    device: str = "auto",
    seed: int = 0,
    seeds: int = 1,
    shared: bool = False,
) -> EvaluationResult:
    """Evaluates like `ssl eval`: `evaluate(run, "knn", {"k": [20]}).metrics["top1"]`.

    Args:
        target: a `Run`, a run directory, a checkpoint, a file, the name of a backbone; None: the newest in `runs/`.
        method: name of the evaluator.
        overrides: its options, and those of the data (`"data.limit"`), by dotted key.
        train: labeled dataset, as an object, to fit on; together with `eval`, instead of the run's own data.
        eval: likewise, the test images.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        seed: the first random seed.
        seeds: the number of seeds; with several, metrics are means, and `spread` has their standard deviations.
        shared: all processes of a group call this, and share the work; by default each works on its own.

    Raises:
        UserError: nothing trained there, no such evaluator, invalid options, no labeled data.
    """
    if method == "all":
        raise UserError("evaluate runs one evaluation; sslcli.evaluate_all(run) runs all of them")
    given = {"train": train, "eval": eval, "device": device, "seed": seed, "seeds": seeds, "shared": shared}
    return evaluate_all(target, method, overrides, **given)[0].result


def evaluate_all(
    targets: Target | Sequence[Target] | None = None,
    method: str = "all",
    overrides: Mapping[str, Any] | None = None,
    *,
    train: Any = None,
    eval: Any = None,  # noqa: A002
    device: str = "auto",
    seed: int = 0,
    seeds: int = 1,
    shared: bool = False,
) -> list[Row]:
    """Evaluates one or several targets on the same data, with one evaluator or all of them; see `evaluate`.

    Returns:
        a row for each target and evaluator, with `target`, `method` and `result`.
    """
    from sslcli.evaluation.evaluate import evaluate_all as run_evaluations
    from sslcli.runs.trained import newest_run
    from sslcli.training.group import joined

    chosen = by_key(overrides)
    if (train is None) != (eval is None):
        raise UserError("train and eval: datasets as objects go together; give both")
    given = {} if train is None else {"labeled": train, "test": eval}
    if given:
        chosen["data.name"] = f"{PYTHON}:{EVALUATED}"
    several: list[Any] = list(targets) if isinstance(targets, Sequence) and not isinstance(targets, str) else [targets]
    words = as_arguments(chosen)
    with on_console(), registered(classes_of(several, given)), joined(device, shared=shared):
        newest = [newest_run("evaluate", "sslcli.evaluate(RUN)")] if targets is None else []
        paths = newest or [path_of(target) for target in several]
        return run_evaluations(paths, method, words, device=device, seed=seed, seeds=seeds)


def classes_of(targets: Sequence[Any], datasets: Mapping[str, Any]) -> Classes:
    """Returns the classes that the targets' configs call `python:…`, and those of datasets to evaluate on, by split."""
    classes: Classes = dict(data_classes(datasets, EVALUATED)[1]) if datasets else {}
    for target in targets:
        for key, cls in (target.classes if isinstance(target, Run) else {}).items():
            if classes.setdefault(key, cls) is not cls:
                raise UserError(f"two runs have different objects named {PYTHON}:{key[1]}: evaluate them one by one")
    return classes


def export(
    target: Target | None = None,
    exporter: str = "backbone",
    path: str | Path | None = None,
    *,
    shared: bool = False,
    **options: Any,
) -> Exported:
    """Exports like `ssl export`; replaces `path` if it exists.

    Args:
        target: a `Run`, a run directory, a checkpoint or a backbone file; None: the newest run in `runs/`.
        exporter: its name.
        path: the file; by default in the run directory, or next to the file.
        shared: for `features`: as for `evaluate`.
        options: the exporter's; `data` of `features` may be an object, as for `train`.

    Returns:
        the file's path, and Python lines that load it (`how_to_load`).

    Raises:
        UserError: unknown exporter, nothing trained there, invalid options, or a file that cannot be written.
    """
    from sslcli.evaluation.export import export as run_export
    from sslcli.plugins import load
    from sslcli.training.group import joined

    if shared and not load("exporters", exporter).shared:
        raise UserError(f"shared: {exporter!r} is exported by one process; leave it out")
    classes, data = classes_of([target], {}), options.get("data")
    given = data.get("name") if isinstance(data, Mapping) else data
    if given is not None and not isinstance(given, str | Path):
        name, made, _ = data_classes({"train": given}, EVALUATED)
        classes |= made
        options["data"] = {**(data if isinstance(data, Mapping) else {}), "name": name}
    arguments, file = as_arguments(as_plain("options", options)), None if path is None else Path(path)
    with on_console(), registered(classes), joined("auto", shared=shared):
        return run_export(exporter, None if target is None else path_of(target), file, arguments)


def path_of(target: Target) -> Path:
    """Returns the path of a target; UserError for anything else."""
    if not isinstance(target, Run | str | Path):
        raise UserError(f"should be a Run, a path or a name, not {type(target).__name__}")
    return target.path if isinstance(target, Run) else expanded(target)
