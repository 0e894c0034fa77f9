"""Decodes images once, at a bounded size, into the file of a cache: the work of several processes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
import torch.utils.data
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import SslError, UnreadableImage

from ..decode import decoded_size
from ..processes import end_workers, loader, worker_errors
from .file import Numbers, write_index

#: Images that a worker is given at a time.
_CHUNK = 32
#: Seconds between lines about the progress.
_REPORT_EVERY = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bound:
    """How large images are kept.

    Args:
        side: the shorter side in pixels, at most.
        needed: the side that the views need (`crops.wanted_side`); None: full size.
    """

    side: int
    needed: int | None

    @property
    def wanted(self) -> int:
        """What the decoder is asked for (see `Dataset.image_for`), so that a photograph far larger than `side` is
        decoded at a part of its size, and one that is not is the image that would be decoded without a cache."""
        return self.side if self.needed is None else min(self.side, self.needed)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of an image once it is reduced; its shape stays, to the nearest pixel."""
        short = min(height, width)
        if short <= self.side:
            return height, width
        return round(height * self.side / short), round(width * self.side / short)

    def image(self, dataset: Dataset, index: int) -> Tensor:
        """Decodes an image; (C, H, W) uint8, in memory as H × W × C. UnreadableImage if it cannot be."""
        image = dataset.image_for(index, self.wanted)
        size = self.size(*image.shape[-2:])
        if image.shape[-2:] == size:
            return image
        return F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]


def measure(dataset: Dataset, bound: Bound, workers: int) -> Numbers:
    """Returns the bytes that each image takes, (N,), according to its file's header; 0 where it cannot be read."""
    tasks = [range(start, min(start + _CHUNK, len(dataset))) for start in range(0, len(dataset), _CHUNK)]
    return np.concatenate(_in_workers("measured", partial(_measure, dataset, bound), tasks, workers))


def build(path: Path, dataset: Dataset, sizes: Numbers, bound: Bound, workers: int, key: bytes) -> None:
    """Decodes all images of a data set into a file. One that cannot be read, or isn't of its size, is left out.

    Args:
        path: the file, which exists and is empty.
        dataset: where the images come from.
        sizes: (N,), as `measure` found them.
        bound: how large they are kept.
        workers: processes that do it; 0 does it in this one.
        key: the file's fingerprint.

    Raises:
        SslError: the file cannot be written.
    """
    offsets = sizes.cumsum() - sizes
    tasks = [
        (start, offsets[start : start + _CHUNK], sizes[start : start + _CHUNK])
        for start in range(0, len(sizes), _CHUNK)
    ]
    shapes = _in_workers("decoded", partial(_write, path, dataset, bound), tasks, workers)
    write_index(path, int(sizes.sum()), np.column_stack([offsets, np.concatenate(shapes)]), key)


def _measure(dataset: Dataset, bound: Bound, indices: range) -> Numbers:
    found = []
    for index in indices:
        path = dataset.path_of(index)
        size = None if path is None else decoded_size(path, bound.wanted)
        found.append(0 if size is None else dataset.info.channels * math.prod(bound.size(*size)))
    return np.array(found, dtype=np.int64)


def _write(path: Path, dataset: Dataset, bound: Bound, task: tuple[int, Numbers, Numbers]) -> Numbers | str:
    """Returns the shapes (n, 2) of what it wrote, height 0 for what it did not; or why it could not write."""
    first, offsets, sizes = task
    shapes = np.zeros((len(sizes), 2), dtype=np.int64)
    try:
        with path.open("r+b") as file:
            for row, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
                try:
                    image = bound.image(dataset, first + row)
                except UnreadableImage:
                    continue
                if image.numel() == size:
                    file.seek(offset)
                    file.write(image.permute(1, 2, 0).contiguous().numpy().data)
                    shapes[row] = image.shape[-2:]
    except OSError as error:
        return f"cannot write {path}: {error.strerror or error}"
    return shapes


class _Work(torch.utils.data.Dataset[Any]):
    """A function as torch's loader takes it."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, task: Any) -> Any:
        return self.function(task)


def _in_workers(done: str, function: Callable[[Any], Any], tasks: list[Any], workers: int) -> list[Any]:
    """Returns a function's results, in order, and reports now and then how far it is. A text is why a task failed."""
    workers = min(workers, math.ceil(len(tasks) / 4))  # a process takes longer to start than a few images
    iterator = iter(loader(_Work(function), tasks, workers))
    results: list[Any] = []
    begun = reported = time.monotonic()
    try:
        with worker_errors():
            for result in iterator:
                if isinstance(result, str):
                    raise SslError(f"data.cache: {result}")
                results.append(result)
                now = time.monotonic()
                if now - reported >= _REPORT_EVERY:
                    reported = now
                    share, rate = len(results) / len(tasks), len(results) * _CHUNK / (now - begun)
                    log.info("data.cache: %s %.0f%% of the images (%.0f/s)", done, 100 * share, rate)
    finally:
        if workers:
            end_workers(iterator)
    return results


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns what the system refuses (to write, to start a worker) into an error that all processes report.

    Raises:
        SslError: instead of an OSError.
    """
    try:
        yield
    except BrokenPipeError:  # of whoever reads the messages
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise SslError(f"data.cache: {where}{error.strerror or error}") from error
