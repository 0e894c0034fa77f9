"""A run's directory: what lies where, who may write, and the log that a resumption continues."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from sslcli.config.document import dump_yaml
from sslcli.contracts.errors import UserError
from sslcli.storage import write_text

from .checkpoint import list_checkpoints
from .environment import describe_environment


class RunDirectory:
    """Paths of one run, and the open log while it is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.backbone = path / "backbone.safetensors"
        self.environment = path / "environment.json"
        self.evaluations = path / "eval"
        self._log: TextIO | None = None
        self._lock: TextIO | None = None

    def is_run(self) -> bool:
        return self.config.is_file()

    def check_new(self, *, resume: bool) -> bool:
        """Tells whether there is a run to resume; refuses to touch what must not be overwritten.

        Raises:
            UserError: a run is there and `resume` was not asked for; or the path is a file, holds other things than a
                run, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; --output wants a directory")
        if self.is_run():
            if not resume:
                raise UserError(
                    f"{self.path}: holds a run already; go on with --resume, or choose another directory with --output"
                )
            if list_checkpoints(self.checkpoints):
                return True
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path}: is not empty and holds no run; choose another directory with --output")
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir():
            raise UserError(f"{self.path}: cannot be made, {parent} is a file; choose another --output")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"{self.path}: cannot be written ({parent} is read-only for you); choose another --output")
        return False

    def create(self, config: Mapping[str, Any], command: list[str], *, resumed: bool) -> None:
        """Makes the directory, takes the lock, and writes what describes the run.

        Raises:
            UserError: it cannot be written, or another process is writing this run.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            write_text(self.config, dump_yaml(config))
            self._write_environment(command, resumed=resumed)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another --output") from error

    def _take_lock(self) -> None:
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise UserError(f"{self.path}: another process is training this run") from None
        except OSError:
            pass  # file systems without locks (some network ones): better to run unlocked than not at all

    def _write_environment(self, command: list[str], *, resumed: bool) -> None:
        """Appends a start to `environment.json`: when, how, and with which versions."""
        starts: list[Any] = []
        if resumed and self.environment.is_file():
            try:
                starts = json.loads(self.environment.read_text(encoding="utf-8"))["starts"]
            except (ValueError, KeyError, TypeError):
                starts = []
        place = {"directory": str(Path.cwd()), "executable": sys.executable}
        starts = [*starts, describe_environment(command) | place]
        write_text(self.environment, json.dumps({"starts": starts}, indent=2) + "\n")

    def open_log(self, *, from_step: int) -> None:
        """Opens `metrics.jsonl`, dropping lines of steps after `from_step`, which will be written again."""
        kept: list[str] = []
        if from_step > 0 and self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= from_step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill cut short
        write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        self._log = self.metrics.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`; it is out of our hands (though not synced) on return."""
        assert self._log is not None, "open_log comes first"
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()

    def close(self) -> None:
        for file in (self._log, self._lock):
            if file is not None:
                file.close()
        self._log = self._lock = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`: one record per line, skipping one that a kill cut short."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
