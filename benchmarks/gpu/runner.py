"""Runs commands within a limited time: each in a process group of its own, with a limit, a log, and a line of results.

Nothing here imports torch or the package: a fault there is a line of results, and the next stage still runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from . import lines

#: Seconds before the end in which nothing new begins, and that a killed job gets to end by itself.
_LAST, _GRACE = 5.0, 3.0
#: Characters of a job's output kept in the log, and in the line of one that failed.
_LOGGED, _SHOWN = 6000, 1500

Command = list[str]


class Stopped(BaseException):
    """The process was told to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class _Signals:
    held: bool = False
    waiting: int | None = None


_signals = _Signals()


@contextmanager
def signals_held() -> Iterator[None]:
    """Lets a signal that comes meanwhile raise Stopped at the end: a job that was started must be known."""
    _signals.held = True
    try:
        yield
    finally:
        _signals.held = False
    if _signals.waiting is not None:
        raise Stopped(_signals.waiting)


def stop_on_signals() -> None:
    """Makes SIGTERM and SIGINT raise Stopped, once: what is done about it is not interrupted again."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: None)  # not SIG_IGN, which a job would inherit
        if _signals.held:
            _signals.waiting = number
        else:
            raise Stopped(number)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


@dataclass
class Job:
    """A process that was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def end(self) -> str:
        """Returns the end of its output."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LOGGED))
            return file.read().decode(errors="replace")

    def stop(self, number: int, patience: float) -> int:
        """Sends a signal to its group, and kills what is left of it after some seconds; returns the exit status."""
        for each in (number, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, each)
            except ProcessLookupError:
                break
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        return self.process.wait()


@dataclass
class Runner:
    """What the stages share.

    Attributes:
        out: the folder whose files are brought back: `results.jsonl` and `log.txt`.
        work: the folder for everything else, which a warm machine keeps.
        seconds: for all stages together.
        device: cuda, or cpu in a dry run.
        tiny: a dry run: everything as small as it can be.
        packed: the folders that `prepare` made, as far as they were brought.
    """

    out: Path
    work: Path
    seconds: float
    device: str = "cuda"
    tiny: bool = False
    packed: tuple[Path, ...] = ()
    stage: str = "run"
    began: float = field(default_factory=time.monotonic)
    running: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in (self.out, self.work / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.results = self.out / "results.jsonl"

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def note(self, name: str, **values: Any) -> None:
        record = {"stage": self.stage, "name": name, "at": round(time.monotonic() - self.began, 1), **values}
        lines.append(self.results, record)
        print(json.dumps(record)[:300], flush=True)

    def python(self, module: str, *words: str) -> Command:
        return [sys.executable, "-m", module, *words]

    def ssl(self, *words: str) -> Command:
        return self.python("sslcli", *words)

    def job(self, name: str, *words: str, overrides: Sequence[str] = ()) -> Command:
        """Returns the command of a function in `jobs.py`, with overrides of its config."""
        options = ["--work", str(self.work), "--device", self.device, *["--tiny"] * self.tiny]
        return self.python("gpu.jobs", name, *words, *options, "--", *overrides)

    def start(self, name: str, command: Command, **environment: str) -> Job:
        log = self.work / "logs" / f"{len(list((self.work / 'logs').iterdir())):03}.txt"
        paths = [str(Path(__file__).parents[1]), str(self.work / "site"), os.environ.get("PYTHONPATH", "")]
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            lines.FILE: str(self.results.absolute()),
            lines.STAGE: self.stage,
            **environment,
        }
        with signals_held(), log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )
            job = Job(name, process, log)
            self.running.append(job)
        return job

    def finish(self, job: Job, limit: float) -> bool:
        """Waits for a job until `limit` seconds after its start; notes how it ended. Returns whether it did so well."""
        status: int | str
        try:
            status = job.process.wait(max(0.1, limit - job.seconds()))
        except subprocess.TimeoutExpired:
            job.stop(signal.SIGTERM, _GRACE)
            status = "out of time"
        return self.ended(job, status)

    def ended(self, job: Job, status: int | str) -> bool:
        """Notes how a job ended, and puts the end of its output into the log; returns whether it ended well."""
        self.running.remove(job)
        end = job.end()
        with (self.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"\n===== {self.stage}, {job.name}: {status}, {job.seconds()} s\n{end}\n")
        shown = {} if status == 0 else {"end": end[-_SHOWN:]}
        self.note(job.name, status=status, seconds=job.seconds(), **shown)
        return status == 0

    def one(self, name: str, command: Command, limit: float, **environment: str) -> bool:
        """Runs a job to its end or limit; returns whether it ended well."""
        limit = min(limit, self.left() - _LAST)
        if limit < _LAST:
            self.note(name, status="no time left")
            return False
        return self.finish(self.start(name, command, **environment), limit)

    def many(self, jobs: Sequence[tuple[str, Command]], at_once: int, limit: float) -> None:
        """Runs small jobs side by side, each with the same limit; what they time is not to be believed."""
        waiting, running = list(jobs), list[Job]()
        while waiting or running:
            while waiting and len(running) < at_once:
                name, command = waiting.pop(0)
                if self.left() < 3 * _LAST:
                    self.note(name, status="no time left")
                else:
                    running.append(self.start(name, command))
            for job in list(running):
                if job.process.poll() is not None or job.seconds() > limit or self.left() < _LAST:
                    self.finish(job, 0)
                    running.remove(job)
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends every job that still runs."""
        for job in list(self.running):
            self.ended(job, job.stop(signal.SIGTERM, _GRACE))
