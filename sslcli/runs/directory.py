"""A run directory: its files, the lock that lets one process write, and the log that a resumed run continues."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sslcli.config.document import dump_yaml
from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import SslError, UserError
from sslcli.plugins import PluginFile
from sslcli.storage import Appending, atomic_path, is_temporary, remove_dead, write_text, writing

from . import layout
from .environment import describe_environment
from .layout import list_checkpoints
from .lock import RunLock
from .metrics import read_metrics

log = logging.getLogger(__name__)

_KEPT_PLUGIN = re.compile(r"-[0-9a-f]{8}\.py$")


class RunDirectory:
    """Paths of one run, and the open log while it is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / layout.CONFIG
        self.metrics = path / layout.METRICS
        self.checkpoints = path / layout.CHECKPOINTS
        self.backbone = path / layout.BACKBONE
        self.environment = path / layout.ENVIRONMENT
        self.evaluations = path / layout.EVALUATIONS
        self._log: Appending | None = None
        self._lock: RunLock | None = None
        self._recorded = False  # whether the last start in `environment.json` is this one

    def is_run(self) -> bool:
        return self.config.is_file()

    def claim(self, *, resume: bool) -> bool:
        """Takes the lock of a run that is there, and returns what `check_new` does.

        Raises:
            UserError: from `check_new`, or another process is writing this run.
        """
        lock = self.path / layout.LOCK
        with writing(self.path, "; choose another --output"):
            if lock.is_file():
                self._lock = RunLock(lock)
            found = self.check_new(resume=resume)
            if self._lock is None and self.is_run():  # a copy without its lock
                self._lock = RunLock(lock)
                found = self.check_new(resume=resume)
        return found

    def check_new(self, *, resume: bool) -> bool:
        """Returns whether there is a run to resume; raises if anything would be overwritten.

        Raises:
            UserError: there is a run, and `resume` is False; or the path is a file, holds other files than a run's, or
                cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; --output must be a directory")
        if self.is_run():
            if self._has_results():
                if not resume:
                    raise UserError(
                        f"{self.path}: already contains a run; resume it with --resume, or choose another --output"
                    )
            elif not (self.path / layout.LOCK).exists():  # which is there before the config
                raise UserError(
                    f"{self.path}: contains no run, but a {layout.CONFIG} that would be overwritten; choose another "
                    "--output"
                )
            if list_checkpoints(self.checkpoints):
                return True
            if self.backbone.exists():
                raise UserError(
                    f"{self.path}: has a trained backbone, and no checkpoint to go on from; choose another --output"
                )
        elif self.path.is_dir() and not self._is_begun():
            raise UserError(f"{self.path}: is not empty and contains no run; choose another --output")
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir():
            raise UserError(f"{self.path}: cannot be created, {parent} is a file; choose another --output")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"{self.path}: cannot be written ({parent} is not writable); choose another --output")
        return False

    def _is_begun(self) -> bool:
        """Returns whether there is nothing but what a start leaves that was killed before its config was written."""
        inside = {path.name for path in self.path.iterdir() if not is_temporary(path)}
        if not inside <= {layout.LOCK, layout.CHECKPOINTS}:
            return False
        return not self.checkpoints.exists() or (self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()))

    def _has_results(self) -> bool:
        """Returns whether a run has left anything; a start that failed before that does not block the next one."""
        if self.backbone.exists() or list_checkpoints(self.checkpoints):
            return True
        steps = [record["step"] for record in read_metrics(self.metrics)]
        return any(step != 0 for step in steps)  # monitors measure the untrained network at step 0

    def create(
        self,
        config: Mapping[str, Any],
        command: list[str],
        *,
        resumed: bool,
        steps: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Creates the directory, takes the lock if `claim` has not, and writes the files that describe the run.

        Args:
            config: the resolved one.
            command: for `environment.json`.
            resumed: whether there is a run to go on with.
            steps: at which one the run ends.
            about: what else `environment.json` says about this start.

        Raises:
            UserError: it cannot be written, or another process is writing this run, or has written one meanwhile.
        """
        with writing(self.path, "" if resumed else "; choose another --output"):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = RunLock(self.path / layout.LOCK)
                if not resumed:
                    self.check_new(resume=False)
            for folder, names in ((self.checkpoints, "*"), (self.path, layout.CONFIG), (self.path, layout.METRICS)):
                remove_dead(folder, names)
            if not resumed:  # left by a start that failed
                for kept in self._kept_plugins():
                    kept.unlink()
            write_text(self.config, dump_yaml(config))
            self._write_environment(command, {"steps": steps, **(about or {})}, resumed=resumed)

    def _kept_plugins(self) -> list[Path]:
        """The copies that `keep_plugin` has made."""
        return [path for path in (self.path / "plugins").glob("*.py") if _KEPT_PLUGIN.search(path.name)]

    def _write_environment(self, command: list[str], about: Mapping[str, Any], *, resumed: bool) -> None:
        """Appends a start to `environment.json`: when, how, and with which versions; `end` is null until it ends."""
        starts: list[Any] = []
        if resumed and self.environment.is_file():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                starts = [*json.loads(self.environment.read_text(encoding="utf-8"))["starts"]]
        here = {"directory": str(Path.cwd()), "executable": sys.executable, **about, "end": None}
        starts.append(describe_environment(command) | here)
        write_text(self.environment, json.dumps({"starts": starts}, indent=2) + "\n")
        self._recorded = True

    @contextmanager
    def ending(self) -> Iterator[list[str]]:
        """Records how a block ends: in the state that it appends, or else as interrupted or failed. Then closes."""
        states: list[str] = []
        try:
            yield states
            self.record_end(states[-1])
        except KeyboardInterrupt:
            self.record_end("interrupted")
            raise
        except BaseException as error:
            text = " ".join(str(error).split())
            text = text if isinstance(error, SslError) else f"{type(error).__name__}: {text}"
            self.record_end("failed", text[:300])
            raise
        finally:
            self.close()

    def record_end(self, state: str, error: str | None = None) -> None:
        """Writes into `environment.json` how the last start ended; nothing if this process is not writing the run.

        Args:
            state: `done`, `interrupted` or `failed`; a run that is killed has none, and so is known to have crashed.
            error: what it failed with.
        """
        if not self._recorded:
            return
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError):  # the run's own outcome matters more
            content = json.loads(self.environment.read_text(encoding="utf-8"))
            end = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "state": state, "error": error}
            content["starts"][-1]["end"] = end
            write_text(self.environment, json.dumps(content, indent=2) + "\n")

    def open_log(self, *, from_step: int) -> None:
        """Opens `metrics.jsonl` without the lines of steps after `from_step`, which will be written again.

        Raises:
            UserError: it cannot be written.
        """
        kept = [record for record in read_metrics(self.metrics) if record["step"] <= from_step] if from_step else []
        with writing(self.metrics):
            write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        self._log = Appending(self.metrics, "training goes on")

    def keep_plugin(self, file: PluginFile) -> None:
        """Copies a `--plugin` file into the run; UserError if it cannot be written."""
        kept = self.path / "plugins" / f"{file.path.stem}-{file.sha256[:8]}.py"
        with writing(kept):
            kept.parent.mkdir(exist_ok=True)
            with atomic_path(kept) as temporary:
                shutil.copyfile(file.path, temporary)
        log.debug(f"copied {file.path} to {kept}")

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`; the system has it on return, though perhaps not yet the disk.
        Where there is no room the line waits in memory."""
        assert self._log is not None, "call open_log first"
        self._log.write(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        for held in (self._log, self._lock):
            if held is not None:
                held.close()
        self._log, self._lock, self._recorded = None, None, False


def default_directory(config: RunConfig, name: str) -> Path:
    """Returns the run directory if none is asked for: `output:` of the config, or `runs/NAME-HASH`.

    If an override names another method than the config file, the name has that method's in place of the file's.
    """
    if config.file_method is not None:
        short = config.method.name.rpartition(":")[2].replace("/", "-")
        name = name.replace(config.file_method, short) if config.file_method in name else f"{name}-{short}"
    return config.output or layout.RUNS / f"{name}-{config.digest()}"
