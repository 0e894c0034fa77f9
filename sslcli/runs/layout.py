"""Where a run's files are; no torch, so that commands that only look at runs start at once."""

from __future__ import annotations

import re
from pathlib import Path

#: The folder of all runs, in the directory that a command is started in.
RUNS = Path("runs")
#: Files and folders of a run.
CONFIG, METRICS, CHECKPOINTS, BACKBONE = "config.yaml", "metrics.jsonl", "checkpoints", "backbone.safetensors"
ENVIRONMENT, EVALUATIONS, VIEWS, LOCK = "environment.json", "eval", "views.png", ".lock"

_NAME = re.compile(r"^step-(\d{9})\.safetensors$")


def checkpoint_path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:09d}.safetensors"


def step_of(path: Path) -> int:
    """Returns the step of a checkpoint by its name."""
    return int(path.stem.rpartition("-")[2])


def list_checkpoints(directory: Path) -> list[Path]:
    """Lists the checkpoints in a directory, the newest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.match(path.name)), reverse=True)
