"""The file of an image cache: written once, then mapped into memory by every process that reads it.

pixels        height × width × channels bytes, one image after another
shapes        (N, 2) int64: height and width of each image; 0 for one that cannot be read
fingerprint   which files, in which state, were decoded, and how
sha256        of shapes and fingerprint
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from sslcli.contracts.errors import SslError, UnreadableImage
from sslcli.storage import unwritable

from ..processes import loader
from ..watch import reading

#: Goes into fingerprints, so that a file of another layout is never read as this one.
FORMAT = 4
#: Images that a worker decodes at once; their pixels wait in shared memory.
_CHUNK = 8
#: Seconds between messages about the progress.
_REPORT_EVERY = 10.0

log = logging.getLogger(__name__)


class NotWritten(SslError):
    """There was no room for the images, or the system refused something else that it takes to write them."""


class CachedImages:
    """Images by index, without a copy: reading one returns a view, and all processes share the pages of the file.

    Picklable by its path; another process that opens it checks the file again, which may have been replaced meanwhile.

    Args:
        path: the file.
        count: how many images.
        channels: of each.
        key: the fingerprint.

    Raises:
        SslError: the file has another fingerprint than `key`, or is damaged.
        OSError: it cannot be read.
    """

    #: Kept open, if the images are in memory: other processes open it by its path.
    memory: IO[bytes] | None = None

    def __init__(self, path: Path, count: int, channels: int, key: bytes) -> None:
        self.path, self.count, self.channels, self.key = path, count, channels, key
        other = SslError(f"{path} was made from other images, or is damaged")
        if path.exists() and not path.is_file():
            raise other
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - 16 * count - len(key) - hashlib.sha256().digest_size
            file.seek(max(end, 0))
            shapes = file.read(16 * count)
            if file.read() != _sealed(shapes, key):
                raise other
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.shapes = np.frombuffer(shapes, dtype="<i8").reshape(count, 2)
        sizes = self.shapes.prod(1) * channels
        self.stops = sizes.cumsum()
        self.starts = self.stops - sizes
        if sizes.sum() != end or (self.shapes < 0).any():
            raise other
        with warnings.catch_warnings():  # torch warns that it has no read-only tensors
            warnings.simplefilter("ignore", UserWarning)
            self._bytes = torch.frombuffer(self._mapped, dtype=torch.uint8)

    def __getitem__(self, index: int) -> Tensor | None:
        """Returns an image as (C, H, W) uint8, in memory as H × W × C, not to be written to; None if it is missing."""
        height, width = self.shapes[index].tolist()
        flat = self._bytes[self.starts[index] : self.stops[index]]
        return flat.view(height, width, self.channels).permute(2, 0, 1) if height else None

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Has the system fetch images from the disk all at once, while the first of them is worked on."""
        for index in indices:
            start, stop = int(self.starts[index]), int(self.stops[index])
            page = start - start % mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_WILLNEED, page, stop - page)

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedImages, (self.path, self.count, self.channels, self.key)


def _sealed(shapes: bytes, key: bytes) -> bytes:
    return key + hashlib.sha256(shapes + key).digest()


class _Decoder(torch.utils.data.Dataset[tuple[Tensor, bytes]]):
    """Decodes chunks of images, each into one tensor: to send many small ones takes as long as to decode them."""

    def __init__(self, decode: Callable[[int], Tensor]) -> None:
        self.decode = decode

    def __getitem__(self, indices: range) -> tuple[Tensor, bytes]:
        images = [torch.empty(0, 0, dtype=torch.uint8)] * len(indices)  # of those that cannot be read
        for row, index in enumerate(indices):
            reading(index)
            with contextlib.suppress(UnreadableImage):
                images[row] = self.decode(index).permute(1, 2, 0)
        shapes = np.array([image.shape[:2] for image in images], dtype="<i8")
        return torch.cat([image.flatten() for image in images]), shapes.tobytes()


def write_images(
    file: IO[bytes], where: str, decode: Callable[[int], Tensor], count: int, workers: int, key: bytes
) -> None:
    """Writes the file of `CachedImages`: worker processes decode, this one writes.

    Args:
        file: an empty one.
        where: what it is called in messages.
        decode: index → uint8 (C, H, W); an image for which it raises UnreadableImage is left out.
        count: of images.
        workers: processes that decode; 0 does it in this one.
        key: the fingerprint.

    Raises:
        SslError: a worker died, or the file cannot be written.
        OSError: the workers cannot be started.
    """

    def write(content: bytes | memoryview) -> None:
        try:
            file.write(content)
            file.flush()  # what is left in the buffer is written where no error is expected
        except OSError as error:
            again = "set data.cache_dir to another disk, or data.cache=none"
            raise NotWritten(f"data.cache: {where}: {unwritable(error, again=again)}") from error

    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    shapes: list[bytes] = []
    begun = reported = time.monotonic()
    with loader(_Decoder(decode), chunks, min(workers, len(chunks))) as results:
        for pixels, found in results:
            write(pixels.numpy().data)
            shapes.append(found)
            if time.monotonic() - reported >= _REPORT_EVERY:
                reported = time.monotonic()
                done = len(shapes) * _CHUNK
                rate = done / (reported - begun)
                log.info("data.cache: decoded %s of %s images (%.0f/s)", f"{done:,}", f"{count:,}", rate)
    joined = b"".join(shapes)
    write(joined + _sealed(joined, key))


def memory_file() -> tuple[IO[bytes], Path]:
    """Returns a file that is held in memory until it is closed, and the path by which other processes open it.

    Where the system has none (it is not Linux): one in the folder of temporary files. It is not made in /dev/shm, which
    is small in containers.
    """
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("sslcli-cache"), "wb")
        return file, Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    named = tempfile.NamedTemporaryFile(prefix="sslcli-cache-")  # noqa: SIM115 (it is kept as long as its reader)
    return named, Path(named.name)  # type: ignore[return-value,unused-ignore]
