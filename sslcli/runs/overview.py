"""What `ssl runs` shows: the runs in a folder, each from its small files alone. No torch, and no run is an error."""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import layout
from .metrics import finite

#: Folders below the one that is searched: `runs/RUN` and `runs/STUDY/RUN`.
DEPTH = 2
#: Bytes at the end of a log that are read: some hundred lines.
TAIL = 1 << 18
#: What only a run has; a folder with one of these is a run, however damaged.
_MARKS = {layout.CONFIG, layout.METRICS, layout.CHECKPOINTS, layout.ENVIRONMENT, layout.LOCK}


@dataclass(frozen=True)
class RunSummary:
    """What is known about a run without loading it; None where its files don't say.

    Attributes:
        path: its directory.
        method: the method's name.
        data: the dataset's name.
        step: the last step that was logged or saved.
        steps: the step at which it ends.
        knn: the last kNN accuracy that was measured in training, as a fraction.
        time: when it was last written, in seconds since 1970.
        state: `running`; `done`; `interrupted` (and saved); `failed` with an error; `crashed`: it ended without a word;
            `empty`: it has not trained; `unreadable`.
        error: what it failed with.
    """

    path: Path
    method: str | None = None
    data: str | None = None
    step: int | None = None
    steps: int | None = None
    knn: float | None = None
    time: float | None = None
    state: str = "unreadable"
    error: str | None = None


def find_runs(folder: Path, depth: int = DEPTH) -> list[Path]:
    """Returns the run directories in a folder and in its folders, or the folder itself if it is one; by path.

    A folder directly in it that has nothing in it counts as a run that has not begun, one that cannot be listed too.
    Links are followed, and what two paths lead to is listed once.
    """
    found: dict[tuple[int, int], Path] = {}

    def look(path: Path, level: int) -> None:
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            status = path.stat()
        except OSError:
            if level == 1:
                found[-1, len(found)] = path
            return
        if any(entry.name in _MARKS for entry in entries) or (not entries and level == 1):
            found.setdefault((status.st_dev, status.st_ino), path)
        elif level < depth:
            for entry in entries:
                if entry.is_dir():
                    look(path / entry.name, level + 1)

    look(folder, 0)
    return sorted(found.values())


def written_at(run: Path, checkpoints: list[Path] | None = None) -> float | None:
    """Returns when training last wrote into a run, in seconds since 1970: evaluations and exports don't count."""
    saved = _checkpoints(run) if checkpoints is None else checkpoints
    paths = [run / layout.METRICS, run / layout.CONFIG, run / layout.CHECKPOINTS, *saved]
    times = [time for path in paths if (time := _modified(path)) is not None]
    return max(times, default=_modified(run))


def newest_first(folder: Path) -> list[Path]:
    """Returns the runs of `find_runs`, by when each was last written."""
    return sorted(find_runs(folder), key=lambda run: written_at(run) or 0.0, reverse=True)


def summarize(run: Path) -> RunSummary:
    """Returns what the small files of a run say; what is missing or damaged is None."""
    if not os.access(run, os.R_OK | os.X_OK):
        return RunSummary(run)
    config, start = _text(run / layout.CONFIG), _last_start(run)
    log = _tail(run / layout.METRICS)
    last = _last_record(log, b'"step"')
    checkpoints = _checkpoints(run)
    saved = next((layout.step_of(path) for path in checkpoints if os.path.isfile(path)), 0)  # no dangling link
    logged = finite(last.get("step"))
    step = max((int(each) for each in (logged, saved or None) if each is not None), default=0 if start else None)
    steps = start["steps"] if type(start.get("steps")) is int else _steps(config, last)
    state, error = _state(run, start, None if logged is None else int(logged), saved, steps)
    method, data = (_named(_section(config, name)) for name in ("method", "data"))
    measured = _last_record(log, b'"knn_top1"')
    knn = finite(measured.get("knn_top1")) if measured.get("step") else None  # that of step 0 says nothing of training
    return RunSummary(run, method, data, step, steps, knn, written_at(run, checkpoints), state, error)


def is_running(run: Path) -> bool:
    """Returns whether a living process holds the lock of a run; on a file system without locks none does."""
    lock = run / layout.LOCK
    try:
        if lock.is_file():  # opening a pipe would wait
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _state(
    run: Path, start: dict[str, Any], logged: int | None, saved: int, steps: int | None
) -> tuple[str, str | None]:
    if is_running(run):
        return "running", None
    end = start.get("end")
    if isinstance(end, dict) and isinstance(end.get("state"), str):
        error = end.get("error")
        return end["state"], error if isinstance(error, str) else None
    if logged is None and not saved and not start and not (run / layout.BACKBONE).exists():
        return "empty", None
    if "end" in start:
        return "crashed", None
    # A run of a version that did not record its end.
    if logged is None and not saved:
        return "empty", None
    if steps is not None and saved >= steps:
        return "done", None
    return ("interrupted" if saved and saved >= (logged or 0) else "crashed"), None


def _last_start(run: Path) -> dict[str, Any]:
    """The last entry of `environment.json`; empty if there is none."""
    try:
        start = json.loads(_text(run / layout.ENVIRONMENT))["starts"][-1]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    return start if isinstance(start, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _tail(path: Path) -> bytes:
    """The end of a file; empty if it cannot be read."""
    try:
        if not path.is_file():  # reading a pipe would wait
            return b""
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read()
    except OSError:
        return b""


def _last_record(log: bytes, key: bytes) -> dict[str, Any]:
    """The last intact line that has a key; empty if there is none."""
    end = len(log)
    while (at := log.rfind(key, 0, end)) >= 0:
        begin = log.rfind(b"\n", 0, at) + 1
        with suppress(ValueError, RecursionError):
            record = json.loads(log[begin:].split(b"\n", 1)[0])
            if isinstance(record, dict) and key.decode().strip('"') in record:
                return record
        end = begin
    return {}


def _section(config: str, name: str) -> str:
    """A section's text. The rest of the file need not be parsed, which would take 20 ms a run."""
    found = re.search(rf"^{name}:(.*(?:\n(?:[ \t#-].*)?)*)", config, re.MULTILINE)
    return found[1] if found else ""


def _named(section: str) -> str | None:
    """The name that a section has: `simclr`, `{name: simclr, …}`, or `name:` in a line below."""
    found = re.search(r"""(?:^|[\s{,])name:\s*(["']?)([^"'\n,}]+)\1""", section) or re.match(
        r"""[ \t]*(["']?)([^"'\s{}\[,#]*[^"'\s{}\[,#:])\1[ \t]*(?:#.*)?(?:\n|$)""", section
    )
    return found[2].strip() if found else None


def _steps(config: str, record: dict[str, Any]) -> int | None:
    """The length of a run that does not record it: epochs times the steps of one, as far as the log tells."""
    section = _section(config, "training")
    found = {name: re.search(rf"\b{name}:\s*(\d[\d.e+]*)", section) for name in ("epochs", "max_steps")}
    try:
        limits = {name: float(match[1]) for name, match in found.items() if match}
        if "epochs" in limits:
            per_epoch = round(record["step"] / record["epoch"])
            limits["epochs"] *= per_epoch
        return round(min(limits.values()))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _checkpoints(run: Path) -> list[Path]:
    try:
        return layout.list_checkpoints(run / layout.CHECKPOINTS)
    except OSError:
        return []


def _modified(path: Path) -> float | None:
    try:
        return min(max(path.stat().st_mtime, 0.0), 4e9)  # a file may say anything; dates end somewhere
    except OSError:
        return None
