"""`Run`: a run directory as an object."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslcli.config.document import read_file
from sslcli.config.schema import PLUGIN_SECTIONS
from sslcli.contracts.errors import UserError
from sslcli.plugins import PYTHON

from .objects import Classes, Objects

if TYPE_CHECKING:
    from torch import nn

    from sslcli.contracts.evaluation import EvaluationResult
    from sslcli.contracts.export import BackboneCard, Exported
    from sslcli.training.train import TrainResult


class Run:
    """A run directory, and the objects that its config names.

    Attributes:
        path: the directory.
        classes: plugin classes that wrap the objects, by group and the name after `python:` in the config.
        signal: number of the signal that interrupted the training run; None if it ended, or was opened.
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
            data: the data set that the run was made with.
            labeled: its (train, test) pair to evaluate with.

        Raises:
            UserError: there is no run, or it was made without such an object.
        """
        self.path = Path(path).expanduser()
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

    @property
    def config(self) -> dict[str, Any]:
        """Every option with its value, as plain data; the content of `config.yaml`."""
        return read_file(self.path / "config.yaml").data

    @property
    def step(self) -> int:
        """Optimizer steps made; for a run that was opened, the step of its newest checkpoint (0 if it has none)."""
        if self._step is not None:
            return self._step
        from sslcli.runs.checkpoint import list_checkpoints

        newest = next(iter(list_checkpoints(self.path / "checkpoints")), None)
        return 0 if newest is None else int(newest.stem.removeprefix("step-"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The log: a dict for each line, with `step`, `epoch` and the logged values."""
        from sslcli.runs.directory import read_metrics

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
        from .trained import load_backbone

        return load_backbone(self, module) if module is not None else load_backbone(self)

    def evaluate(self, method: str = "knn", *, train: Any = None, eval: Any = None, **options: Any) -> EvaluationResult:  # noqa: A002
        """Evaluates like `sslcli.evaluate`: `run.evaluate("linear").metrics["top1"]`.

        Args:
            method: name of the evaluator.
            train: labeled data set, as an object, to fit on; the run's own data by default.
            eval: likewise, the test images.
            options: `device`, `seed`, `seeds`, and the evaluator's options by name; `data={…}` for other data by name.
        """
        from .trained import evaluate

        known = {name: options.pop(name) for name in ("device", "seed", "seeds") if name in options}
        return evaluate(self, method, options, train=train, eval=eval, **known)

    def export(self, exporter: str = "backbone", path: str | Path | None = None, **options: Any) -> Exported:
        """Exports like `sslcli.export`.

        Args:
            exporter: name of the exporter.
            path: the file; by default the one that `ssl export` writes, in the run directory.
            options: the exporter's.
        """
        from .trained import export

        return export(self, exporter, path, **options)
