"""The command line's four verbs as functions, for scripts and notebooks; reached as `sslcli.train` and so on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.merge import as_arguments
from .config.resolve import load_config

if TYPE_CHECKING:
    from .contracts.backbone import Backbone
    from .contracts.evaluation import EvaluationResult
    from .contracts.export import Exported
    from .training.train import TrainResult


def load_backbone(path: str | Path) -> Backbone:
    """Restores a trained backbone from a file alone.

    Args:
        path: a backbone file (`backbone.safetensors`), a checkpoint, or a run directory.

    Returns:
        the module, on the CPU, in `eval()`; called with normalised images (N, C, H, W) it returns `Features`, whose
        `pooled` is (N, D).

    Raises:
        sslcli.contracts.errors.UserError: nothing there, damaged, or its backbone plugin is not installed.
    """
    from .reporting.console import tell
    from .runs.trained import load_trained

    return load_trained(Path(path), tell).backbone


def train(
    config: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """Trains as `ssl train` does.

    Args:
        config: path of a YAML config.
        overrides: options by dotted key: `{"optimizer.lr": 0.1}`.
        output: run directory; by default `runs/CONFIG-HASH`.
        resume: go on with the run there; start it where there is none.

    Returns:
        how it ended; `directory` is the run directory. `evaluate` and `export` take the result as it is.
    """
    from .cli.train import default_output
    from .reporting.console import tell
    from .training.train import train as run_training

    path = Path(config).expanduser()
    resolved = load_config(path, as_arguments(overrides or {}))
    directory = Path(output).expanduser() if output is not None else default_output(path, resolved)
    return run_training(resolved, directory, resume=resume, command=["sslcli.train", str(config)], tell=tell)


def evaluate(
    target: TrainResult | str | Path, method: str, overrides: Mapping[str, Any] | None = None, *, device: str = "auto"
) -> EvaluationResult:
    """Evaluates as `ssl eval` does: `evaluate(run, "knn", {"k": [20]}).metrics["top1"]`."""
    from .evaluation.run import evaluate as run_evaluation
    from .reporting.console import tell

    return run_evaluation(_path(target), method, as_arguments(overrides or {}), device=device, tell=tell)


def export(target: TrainResult | str | Path, path: str | Path, exporter: str = "backbone", **options: Any) -> Exported:
    """Exports as `ssl export` does; replaces `path` if it exists."""
    from .exporting.run import export as run_export
    from .reporting.console import tell

    return run_export(exporter, _path(target), Path(path).expanduser(), as_arguments(options), tell=tell)


def _path(target: TrainResult | str | Path) -> Path:
    return Path(target) if isinstance(target, str | Path) else target.directory
