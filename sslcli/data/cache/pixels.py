"""Images that lie in a file as raw pixels, mapped into memory: reading one is taking a view."""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor


class Pixels:
    """Images by index from a file of raw pixels. All processes that read it share its pages; picklable by its path.

    Args:
        path: the file: height × width × channels bytes of one image after another.
        length: how many of its bytes are read.
        places: (N, 3) int64: offset, height and width of each image; height 0 for one that is not there.
        channels: of the images.
    """

    def __init__(self, path: Path, length: int, places: Tensor, channels: int) -> None:
        self.path, self.length, self.places, self.channels = path, length, places, channels
        self._map()

    def __getitem__(self, index: int) -> Tensor | None:
        """Returns an image as (C, H, W) uint8, in memory as H × W × C, not to be written to; None if there is none."""
        offset, height, width = self.places[index].tolist()
        if not height:
            return None
        flat = self._bytes[offset : offset + height * width * self.channels]
        return flat.view(height, width, self.channels).permute(2, 0, 1)

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Has the system fetch images from the disk all at once, while the first of them is worked on."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for index in indices:
            offset, height, width = self.places[index].tolist()
            if height:
                start = offset - offset % mmap.PAGESIZE
                size = offset + height * width * self.channels - start
                self._mapped.madvise(mmap.MADV_WILLNEED, start, size)

    def amount(self) -> str:
        """Returns how many images are there, in words: all, or a part of all."""
        kept, total = int((self.places[:, 1] > 0).sum()), len(self.places)
        return f"{total:,} images" if kept == total else f"{kept:,} of {total:,} images"

    def others(self) -> str:
        """Returns what a line says of the images that are not there; nothing if there are none."""
        return "" if self.places[:, 1].all() else "; the others are decoded when they are asked for"

    def _map(self) -> None:
        if not self.length:
            return
        with self.path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), self.length, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():  # torch has no tensors that can be read only, and says so
            warnings.simplefilter("ignore", UserWarning)
            self._bytes = torch.frombuffer(self._mapped, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_mapped", "_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def memory_file() -> tuple[IO[bytes], Path]:
    """Returns a file that is held in memory until it is closed, and the path by which other processes open it.

    Where the system has none (it is no Linux): one in the folder of temporary files. It is not made in /dev/shm, which
    in containers has room for little.
    """
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("sslcli-cache"), "r+b")
        return file, Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    named = tempfile.NamedTemporaryFile(prefix="sslcli-cache-")  # noqa: SIM115 (it lives as long as its reader)
    return named, Path(named.name)  # type: ignore[return-value,unused-ignore]
