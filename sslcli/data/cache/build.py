"""Decodes images once, at a bounded size, into the file of a cache: worker processes decode, this one writes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import SslError, UnreadableImage

from ..decode import decoded_size
from ..processes import end_workers, loader, worker_errors
from ..subset import fixed_choice
from .file import Numbers, write_index

#: Images that a worker decodes at once; their pixels wait in shared memory.
_CHUNK = 8
#: Images whose headers are read to estimate the size of all.
_SAMPLE = 1000
#: Seconds between messages about the progress.
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


def estimate(dataset: Dataset, bound: Bound) -> int:
    """Returns the bytes that all images take, by the headers of up to 1,000 of them."""

    def size_of(index: int) -> int:
        path = dataset.path_of(index)
        size = None if path is None else decoded_size(path, bound.wanted)
        return 0 if size is None else dataset.info.channels * math.prod(bound.size(*size))

    sample = fixed_choice(len(dataset), _SAMPLE).tolist()
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(size_of, sample)) * len(dataset) // len(sample)


def build(path: Path, dataset: Dataset, bound: Bound, workers: int, key: bytes) -> None:
    """Decodes all images of a data set into a file; those that cannot be read are left out.

    Args:
        path: the file, which exists and is empty.
        dataset: where the images come from.
        bound: how large they are kept.
        workers: processes that decode; 0 does it in this one.
        key: the file's fingerprint.

    Raises:
        SslError: the file cannot be written, or a worker died.
    """
    count = len(dataset)
    tasks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    workers = min(workers, len(tasks))
    results = iter(loader(_Decoder(dataset, bound), tasks, workers))
    found: list[Numbers] = []
    begun = reported = time.monotonic()
    try:
        with worker_errors(), path.open("r+b") as file:
            for pixels, shapes in results:
                file.write(pixels.numpy().data)
                found.append(shapes)
                if time.monotonic() - reported >= _REPORT_EVERY:
                    reported = time.monotonic()
                    done = len(found) * _CHUNK
                    rate = done / (reported - begun)
                    log.info("data.cache: decoded %s of %s images (%.0f/s)", f"{done:,}", f"{count:,}", rate)
            write_index(file, np.concatenate(found), dataset.info.channels, key)
    except OSError as error:
        raise SslError(f"data.cache: cannot write {path}: {error.strerror or error}") from error
    finally:
        if workers:
            end_workers(results)


class _Decoder(torch.utils.data.Dataset[tuple[Tensor, Numbers]]):
    """Decodes chunks of images, each into one tensor, since each that comes from another process keeps a file open."""

    def __init__(self, dataset: Dataset, bound: Bound) -> None:
        self.dataset, self.bound = dataset, bound

    def __getitem__(self, indices: range) -> tuple[Tensor, Numbers]:
        """Returns the pixels, uint8 (bytes,), and the shapes (n, 2), 0 for an image that cannot be read."""
        shapes = np.zeros((len(indices), 2), dtype=np.int64)
        pixels = [torch.empty(0, dtype=torch.uint8)]
        for row, index in enumerate(indices):
            try:
                image = self.bound.image(self.dataset, index)
            except UnreadableImage:
                continue
            shapes[row] = image.shape[-2:]
            pixels.append(image.permute(1, 2, 0).reshape(-1))
        return torch.cat(pixels), shapes


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
