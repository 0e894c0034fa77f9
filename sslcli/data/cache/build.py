"""Decodes images once, at a bounded size, into a file: the work of several processes, each writing its own places."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import torch.utils.data
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import SslError, UnreadableImage

from ..decode import decoded_size
from ..processes import end_workers, loader, worker_errors

#: In the place of the height of an image that the system failed to read: another time it may not.
FAILED = -1
#: Images that a worker is given at a time.
_CHUNK = 32
#: Seconds between lines that tell how far it is.
_TOLD_EVERY = 10.0

Numbers = npt.NDArray[np.int64]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Bound:
    """How large images are kept.

    Attributes:
        side: the shorter side in pixels, at most.
        wanted: what the decoder is asked for (see `Dataset.image_for`), so that a photograph far larger than `side` is
            decoded at a part of its size, and one that is not is the image that would be decoded without a cache.
    """

    side: int
    wanted: int

    @classmethod
    def of(cls, side: int, wanted: int | None) -> Bound:
        """Args:
        side: the shorter side in pixels, at most.
        wanted: what the views need; None: full size.
        """
        return cls(side, side if wanted is None else min(side, wanted))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of an image once it is reduced; its shape stays, to the nearest pixel."""
        short = min(height, width)
        if short <= self.side:
            return height, width
        return round(height * self.side / short), round(width * self.side / short)

    def image(self, dataset: Dataset, place: int) -> Tensor:
        """Decodes an image; (C, H, W) uint8, in memory as H × W × C. UnreadableImage if it cannot be."""
        image = dataset.image_for(place, self.wanted)
        size = self.size(*image.shape[-2:])
        if image.shape[-2:] == size:
            return image
        return F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]


def survey(dataset: Dataset, places: Numbers, bound: Bound, workers: int, tell: Tell) -> Numbers:
    """Returns the bytes that each image takes, (K,), by its file's header; 0 where it cannot be read."""
    chunks = [places[start : start + _CHUNK] for start in range(0, len(places), _CHUNK)]
    progress = _Progress("looked at", len(places), tell)
    found = []
    for sizes in _in_workers(_Survey(dataset, bound), chunks, workers):
        found.append(sizes)
        progress.more(len(sizes))
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def decode_into(
    path: Path,
    dataset: Dataset,
    places: Numbers,
    offsets: Numbers,
    sizes: Numbers,
    bound: Bound,
    workers: int,
    tell: Tell,
) -> Generator[Numbers, None, None]:
    """Decodes images into a file, and yields the shapes of one stretch of them after another, in order.

    Args:
        path: the file, which is there already.
        dataset: where the images come from.
        places: (K,), which ones.
        offsets: (K,), where in the file each one's pixels begin.
        sizes: (K,), as `survey` found them.
        bound: how large they are kept.
        workers: processes that do it; 0 does it in this one.
        tell: shows a line to the user.

    Yields:
        (n, 2): height and width of the next n images, 0 for one that was not written, since it cannot be read or is
        not of the size that its header told; `FAILED` where that may be another time.

    Raises:
        SslError: the file cannot be written.
    """
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(places), _CHUNK)]
    tasks = [(places[chunk], offsets[chunk], sizes[chunk]) for chunk in chunks]
    progress = _Progress("decoded", len(places), tell)
    for shapes in _in_workers(_Writer(dataset, bound, path), tasks, workers):
        if isinstance(shapes, str):
            raise SslError(f"data.cache: cannot write {path}: {shapes}")
        yield shapes
        progress.more(len(shapes))


class _Progress:
    """Tells now and then how many of the images are done."""

    def __init__(self, done: str, total: int, tell: Tell) -> None:
        self._done, self._total, self._tell = done, total, tell
        self._count, self._begun = 0, time.monotonic()
        self._told = self._begun

    def more(self, count: int) -> None:
        self._count += count
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            rate = self._count / (now - self._begun)
            self._tell(f"data.cache: {self._done} {self._count:,} of {self._total:,} images ({rate:,.0f}/s)")


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns what the system refuses (to write, to start or to keep a worker) into what all processes can be told.

    Raises:
        SslError: instead of an OSError, and of what torch raises when a worker dies.
    """
    try:
        yield
    except RuntimeError:  # of a worker's death, which torch tells at any line
        with worker_errors():
            raise
    except BrokenPipeError:  # of whoever reads the lines that are told
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise SslError(f"data.cache: {where}{error.strerror or error}") from error


def _in_workers(work: torch.utils.data.Dataset[Any], tasks: list[Any], workers: int) -> Iterator[Any]:
    workers = min(workers, math.ceil(len(tasks) / 4))  # a process takes longer to start than a few images
    results = iter(loader(work, tasks, workers))
    try:
        with worker_errors():
            yield from results
    finally:
        if workers:
            end_workers(results)


class _Survey(torch.utils.data.Dataset[Numbers]):
    def __init__(self, dataset: Dataset, bound: Bound) -> None:
        self.dataset, self.bound = dataset, bound

    def __getitem__(self, places: Numbers) -> Numbers:
        return np.array([self._bytes(place) for place in places.tolist()], dtype=np.int64)

    def _bytes(self, place: int) -> int:
        path = self.dataset.path_of(place)
        size = None if path is None else decoded_size(path, self.bound.wanted)
        return 0 if size is None else self.dataset.info.channels * math.prod(self.bound.size(*size))


class _Writer(torch.utils.data.Dataset["Numbers | str"]):
    """Returns the shapes of what it wrote, or why it could not."""

    def __init__(self, dataset: Dataset, bound: Bound, path: Path) -> None:
        self.dataset, self.bound, self.path = dataset, bound, path

    def __getitem__(self, task: tuple[Numbers, Numbers, Numbers]) -> Numbers | str:
        shapes = np.zeros((len(task[0]), 2), dtype=np.int64)
        try:
            with self.path.open("r+b") as file:
                for row, (place, offset, size) in enumerate(zip(*(part.tolist() for part in task), strict=True)):
                    try:
                        image = self.bound.image(self.dataset, place)
                    except UnreadableImage as error:
                        shapes[row] = FAILED if _of_system(error) else 0
                        continue
                    if image.numel() == size:
                        file.seek(offset)
                        file.write(image.permute(1, 2, 0).contiguous().numpy().data)
                        shapes[row] = image.shape[-2:]
                    elif not size:  # its header could not be read a while ago
                        shapes[row] = FAILED
        except OSError as error:
            return error.strerror or str(error)
        return shapes


def _of_system(error: UnreadableImage) -> bool:
    """Whether the file could not be read, by contrast with what is in it (a broken disk or network, no permission)."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno is not None
