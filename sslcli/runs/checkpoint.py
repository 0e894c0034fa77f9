"""Checkpoints: one safetensors file each, written in the background, the newest intact one read back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sslcli.contracts.errors import SslError
from sslcli.storage import unwritable

from . import files
from .layout import checkpoint_path as checkpoint_path
from .layout import list_checkpoints as list_checkpoints
from .layout import step_of as step_of

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT_VERSION = 1


@dataclass
class Checkpoint:
    """The content of a checkpoint: its tensors by name, and its document (step, config, …)."""

    path: Path
    tensors: dict[str, Tensor]
    document: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.document["step"])


def read_checkpoint(path: Path, prefix: str = "") -> Checkpoint:
    """Reads one checkpoint, or the tensors in it whose names begin with `prefix`; DamagedFile if it is not intact."""
    tensors, document = files.read(path, prefix)
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise files.DamagedFile(f"{path}: has checkpoint format {version}; this version reads {FORMAT_VERSION}")
    return Checkpoint(path, tensors, document)


def newest_intact(directory: Path, read: Callable[[Path], T], problem: type[SslError] = SslError) -> T | None:
    """Reads the newest checkpoint that is intact, with a warning for each damaged one; None if there is no checkpoint.

    Args:
        directory: of the checkpoints.
        read: `read_checkpoint`, for example; raises DamagedFile.
        problem: the class of the error.

    Raises:
        SslError: there are checkpoints and all of them are damaged.
    """
    paths = list_checkpoints(directory)
    for path in paths:
        try:
            return read(path)
        except files.DamagedFile as error:
            log.warning(f"{error}; trying the one before it")
    if paths:
        raise problem(f"{directory}: none of the {len(paths)} checkpoints is intact")
    return None


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time; keeps the newest `keep` regular ones and the newest of all, and
    never fewer than two.

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

    def save(self, step: int, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Writes tensors that nobody else changes (see `files.snapshot`); waits for the previous write."""
        self.join()
        self.last_step, self.good_step = step, self.last_step
        self.pending = self.executor.submit(self._write, step, tensors, {**document, "format_version": FORMAT_VERSION})

    def _write(self, step: int, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        path, began = checkpoint_path(self.directory, step), time.perf_counter()
        try:
            files.write(path, tensors, document)
        except OSError as error:
            self.problem, self.last_step = f"{path}: {unwritable(error)}", self.good_step
            log.warning(f"{self.problem}; training goes on, {self._saved()}")
            return
        self.problem = None
        log.debug(f"wrote {path} in {time.perf_counter() - began:.2f} s")
        # Later ones are what a resumed run has passed over: damaged, and overwritten when it gets there.
        there = [each for each in list_checkpoints(self.directory) if step_of(each) <= step]
        regular = [path for path in there if self.is_regular is None or self.is_regular(step_of(path))][: self.keep]
        kept = {*regular, *there[: 1 if len({*regular, *there[:1]}) > 1 else 2]}
        for old in there:
            if old not in kept:
                with suppress(OSError):  # one too many is no loss; the next save tries again
                    old.unlink(missing_ok=True)

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

    def close(self) -> None:
        try:
            self.join()
        finally:
            self.executor.shutdown()
