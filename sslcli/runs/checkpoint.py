"""Checkpoints: one safetensors file each, written in the background, the newest intact one read back."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sslcli.contracts.errors import SslError, UserError
from sslcli.memory import is_out_of_memory
from sslcli.storage import unwritable
from sslcli.version import __version__

from . import files
from .layout import checkpoint_path as checkpoint_path
from .layout import list_checkpoints as list_checkpoints
from .layout import step_of as step_of

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT_VERSION = 1
#: Without which a document is not one of this version.
_KEYS = {"step", "config", "numbers", "scaler", "encoder", "card", "world_size"}

#: The types in a document: a file's hashes only say that it is what was written, by whatever program.
_TYPES: dict[str, type] = {
    "step": int, "world_size": int, "config": dict, "numbers": dict, "scaler": dict, "card": dict, "plugins": dict,
    "frozen": dict, "versions": dict, "encoder": str,
}  # fmt: skip


@dataclass
class Checkpoint:
    """The content of a checkpoint: its tensors by name, and its document (step, config, …)."""

    path: Path
    tensors: dict[str, Tensor]
    document: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.document["step"])


class NewerVersion(files.DamagedFile):
    """A checkpoint that only a newer version can read: it is neither overwritten nor deleted."""


def read_checkpoint(path: Path, prefix: str = "") -> Checkpoint:
    """Reads one checkpoint, or the tensors in it whose names begin with `prefix`.

    Raises:
        NewerVersion: a newer version wrote it, in a way that this one does not know.
        DamagedFile: it is not intact.
        FileNotFoundError: there is none.
    """
    read_header(path)
    tensors, document = files.read(path, prefix)
    if "step" not in document:
        raise files.DamagedFile(f"{path}: was not written by ssl: it has no step")
    return Checkpoint(path, tensors, document)


def read_header(path: Path) -> dict[str, Any]:
    """Reads the document of a checkpoint, or of another file of a run, alone; raises like `read_checkpoint`."""
    document = files.read_document(path)
    version = document.get("format_version", FORMAT_VERSION)
    versions = document.get("versions")
    written_by = versions.get("sslcli") if isinstance(versions, dict) else None
    unknown = _numbers(written_by) > _numbers(__version__) and not document.keys() >= _KEYS
    if unknown or (type(version) is int and version > FORMAT_VERSION):
        by = f" (sslcli {written_by}; this is {__version__})" if written_by else ""
        reason = f"it has checkpoint format {version}; this version reads {FORMAT_VERSION}"
        raise NewerVersion(f"{path}: was written by a newer version{by}{'' if unknown else ': ' + reason}")
    if version != FORMAT_VERSION:
        raise files.DamagedFile(f"{path}: has checkpoint format {version}; this version reads {FORMAT_VERSION}")
    for name, kind in _TYPES.items():
        value: Any = document.get(name)
        wrong = type(value) is not kind or (isinstance(value, int) and value < 0)
        if wrong and name in document:
            raise files.DamagedFile(f"{path}: was not written by ssl: its {name} is {str(value)[:60]!r}")
    return document


def _numbers(version: object) -> list[int]:
    """The release of a version: `0.2.0.dev1` → [0, 2, 0]."""
    found = re.match(r"\d+(\.\d+)*", version) if isinstance(version, str) else None
    return [int(number) for number in found[0].split(".")] if found else []


@contextmanager
def understood(path: Path | None) -> Iterator[None]:
    """Turns what stored values of unexpected types cause within the block into a UserError that names their file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": ")
        raise UserError(f"{path}: holds something that this version cannot read ({reason})") from error


def newest_intact(directory: Path, read: Callable[[Path], T], problem: type[SslError] = SslError) -> T | None:
    """Reads the newest checkpoint that is intact, with a warning for each one that is not; None if there is none.

    Args:
        directory: of the checkpoints.
        read: `read_checkpoint`, for example; raises DamagedFile.
        problem: the class of the error.

    Raises:
        SslError: there are checkpoints and none of them can be used.
    """
    paths = list_checkpoints(directory)
    for path in paths:
        try:
            return read(path)
        except files.DamagedFile as error:
            log.warning(f"{error}; trying the one before it")
        except FileNotFoundError:  # by a process that trains the run, for example
            log.warning(f"{path}: was deleted before it could be read; trying the one before it")
    there = list_checkpoints(directory)
    if there != paths:
        return newest_intact(directory, read, problem)
    if paths:
        raise problem(f"{directory}: none of the {len(paths)} checkpoints is intact")
    return None


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time; keeps the newest `keep` regular ones and the newest of all, and
    never fewer than two. Only intact ones count; one of a newer version stays.

    One that cannot be written, because the disk is full for example, is told at once and does not end a run: the next
    one may find room, and only `check` at the end raises. What was there is intact.

    Args:
        directory: where they are.
        keep: how many.
        is_regular: returns whether a checkpoint of a step is; None: all are.
    """

    def __init__(self, directory: Path, keep: int, is_regular: Callable[[int], bool] | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self.is_regular = is_regular
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.last_step = self.good_step = -1
        self.problem: str | None = None  # with the last one
        self._known: dict[tuple[Path, int, int], bool] = {}  # what `_quality` has found

    def save(self, step: int, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Writes tensors that nobody else changes (see `files.snapshot`); waits for the previous write."""
        self.join()
        self.last_step, self.good_step = step, self.last_step
        self.pending = self.executor.submit(self._write, step, tensors, {**document, "format_version": FORMAT_VERSION})

    def _write(self, step: int, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        path, began = checkpoint_path(self.directory, step), time.perf_counter()
        if path.exists() and self._is_foreign(path):
            raise SslError(f"{path}: is of a newer version, or cannot be read, and is not overwritten; move it away")
        try:
            files.write(path, tensors, document)
        except OSError as error:
            self.problem, self.last_step = f"{path}: {unwritable(error)}", self.good_step
            log.warning(f"{self.problem}; training goes on, {self._saved()}")
            return
        self.problem = None
        self._known[_identity(path)] = True
        log.debug(f"wrote {path} in {time.perf_counter() - began:.2f} s")
        # Later ones are what a resumed run has passed over: damaged, and overwritten when it gets there.
        there = [each for each in list_checkpoints(self.directory) if step_of(each) <= step]
        good: list[Path] = []
        regular: list[Path] = []
        for each in there:  # no more of them are read than have to be
            if (len(regular) < self.keep or len(good) < 2) and self._quality(each):
                good.append(each)
                regular += [each] * (self.is_regular is None or self.is_regular(step_of(each)))
        kept = {*regular[: self.keep]}
        kept |= {*good[: 1 if len({*kept, *good[:1]}) > 1 else 2]}
        for old in there:
            if old not in kept and not self._is_foreign(old):
                with suppress(OSError):  # what cannot be removed does not end a run; the next save tries again
                    old.unlink(missing_ok=True)

    def _quality(self, path: Path) -> bool:
        """Whether a checkpoint is intact; read again only if the file has changed, or could not be opened."""
        try:
            file = _identity(path)
            if file not in self._known:
                read_header(path)
                files.check(path)
                self._known[file] = True
        except (files.UnreadableFile, OSError):  # a link to nothing, for example
            return False
        except files.DamagedFile:
            self._known[file] = False
        return self._known[file]

    def _is_foreign(self, path: Path) -> bool:
        """Whether a checkpoint is not this run's to replace: of a newer version, or one that cannot be opened now."""
        try:
            read_header(path)
        except (NewerVersion, files.UnreadableFile):
            return True
        except (files.DamagedFile, OSError):
            return False
        return False

    def _saved(self) -> str:
        newest = next(iter(list_checkpoints(self.directory)), None)
        return "nothing is saved yet" if newest is None else f"step {step_of(newest)} is saved"

    def join(self) -> None:
        """Waits until the last checkpoint is on the disk, or could not be written."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def check(self) -> None:
        """Waits for the last checkpoint; SslError if it could not be written."""
        self.join()
        if self.problem is not None:
            raise SslError(f"{self.problem}; {self._saved()}: resume with --resume")

    def last_good(self) -> Path | None:
        """Returns the newest checkpoint that is on the disk, written here or resumed from; raises like `join`."""
        self.join()
        return checkpoint_path(self.directory, self.last_step) if self.last_step >= 0 else None

    def close(self) -> None:
        try:
            self.join()
        finally:
            self.executor.shutdown()


def _identity(path: Path) -> tuple[Path, int, int]:
    """What changes when a file is written again; OSError if there is none."""
    status = path.stat()
    return path, status.st_ino, status.st_mtime_ns
