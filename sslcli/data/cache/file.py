"""The file of an image cache. It is written once, and only a complete one gets its name (see `build`).

pixels        height × width × channels bytes, one image after another
index         (N, 3) int64: offset, height and width of each image; height 0 for one that is missing
fingerprint   32 bytes: which files, in which state, were decoded, and how
checksum      sha256 of index and fingerprint
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sslcli.contracts.errors import SslError

#: Goes into names and fingerprints, so that files of another layout are never read as this one.
FORMAT = 2
_DIGEST = hashlib.sha256().digest_size

Numbers = npt.NDArray[np.int64]


class StaleCache(SslError):
    """A file does not hold the images as they are now, or is damaged."""


def fingerprint(settings: str, folder: Path, names: Iterable[str]) -> bytes:
    """Returns a hash of settings and of the names, sizes and modification times of a folder's files."""
    digest = hashlib.sha256(os.fsencode(f"{FORMAT} {folder} {settings}\n"))
    prefix = str(folder)  # joined as text: a Path for each of a million images takes many times as long
    for name in names:
        try:
            state = os.stat(os.path.join(prefix, name))
            digest.update(os.fsencode(f"{name}\0{state.st_size} {state.st_mtime_ns}\n"))
        except OSError:
            digest.update(os.fsencode(f"{name}\0missing\n"))
    return digest.digest()


def write_index(file: IO[bytes], shapes: Numbers, channels: int, key: bytes) -> None:
    """Completes a file, after the pixels.

    Args:
        file: opened for writing.
        shapes: (N, 2): height and width of each image; 0 for one that is missing.
        channels: of the images.
        key: the file's fingerprint.
    """
    sizes = shapes.prod(1) * channels
    index = np.column_stack([sizes.cumsum() - sizes, shapes])
    content = index.astype("<i8").tobytes() + key
    file.write(content + hashlib.sha256(content).digest())


class CachedImages:
    """Images by index, mapped into memory: reading one is taking a view. All processes share the pages of the file.

    Picklable by its path; another process that opens it checks the file again, which may have been replaced meanwhile.

    Args:
        path: the file.
        count: N, how many images it is to have.
        channels: of the images.
        key: the fingerprint it is to have.

    Raises:
        StaleCache: the file is another one, or damaged.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, count: int, channels: int, key: bytes) -> None:
        self.path, self.count, self.channels, self.key = path, count, channels, key
        with path.open("rb") as file:
            start = file.seek(0, os.SEEK_END) - 24 * count - 2 * _DIGEST
            file.seek(max(start, 0))
            tail = file.read()
            content, checksum = tail[:-_DIGEST], tail[-_DIGEST:]
            if start < 0 or content[-_DIGEST:] != key or hashlib.sha256(content).digest() != checksum:
                raise StaleCache(f"{path} was made from other images, or is damaged")
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.index = torch.from_numpy(np.frombuffer(content[:-_DIGEST], dtype="<i8").reshape(count, 3).astype(np.int64))
        with warnings.catch_warnings():  # torch warns that it has no read-only tensors
            warnings.simplefilter("ignore", UserWarning)
            self._bytes = torch.frombuffer(self._mapped, dtype=torch.uint8)

    def __getitem__(self, index: int) -> Tensor | None:
        """Returns an image as (C, H, W) uint8, in memory as H × W × C, not to be written to; None if it is missing."""
        offset, height, width = self.index[index].tolist()
        if not height:
            return None
        flat = self._bytes[offset : offset + height * width * self.channels]
        return flat.view(height, width, self.channels).permute(2, 0, 1)

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Has the system fetch images from the disk all at once, while the first of them is worked on."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for index in indices:
            offset, height, width = self.index[index].tolist()
            if height:
                start = offset - offset % mmap.PAGESIZE
                size = offset + height * width * self.channels - start
                self._mapped.madvise(mmap.MADV_WILLNEED, start, size)

    def count_text(self) -> str:
        """Returns how many images are there, as a message says it."""
        kept = int((self.index[:, 1] > 0).sum())
        if kept == self.count:
            return f"{kept:,} images"
        return f"{kept:,} of {self.count:,} images (the others could not be read, and are tried again each time)"

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedImages, (self.path, self.count, self.channels, self.key)


def memory_file() -> tuple[IO[bytes], Path]:
    """Returns a file that is held in memory until it is closed, and the path by which other processes open it.

    Where the system has none (it is not Linux): one in the folder of temporary files. It is not made in /dev/shm, which
    is small in containers.
    """
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("sslcli-cache"), "r+b")
        return file, Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    named = tempfile.NamedTemporaryFile(prefix="sslcli-cache-")  # noqa: SIM115 (it is kept as long as its reader)
    return named, Path(named.name)  # type: ignore[return-value,unused-ignore]
