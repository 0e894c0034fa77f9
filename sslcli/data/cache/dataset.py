"""`data.cache`: images decoded once, at a bounded size, into memory or a file, from which every epoch reads them.

Crops come from the images at that size. Where it reduces nothing, they are bitwise those of the files themselves. An
image that cannot be read is not in the cache, and is read as if there were no cache. When a file has changed, all
are decoded again.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Literal, TypeVar

import torch.nn.functional as F
from rich.filesize import decimal
from torch import Tensor

from sslcli import distributed
from sslcli.contracts.data import AnyDataset
from sslcli.contracts.errors import SslError, UserError
from sslcli.storage import atomic_path, expanded, remove_dead

from ..decode import decoded_size
from ..files import FileDataset
from ..paths import fingerprint, user_cache
from ..processes import usable_cores
from ..subset import fixed_choice
from .file import FORMAT, CachedImages, NotWritten, memory_file, write_images
from .room import available_memory, free_disk

D = TypeVar("D", bound=AnyDataset)
Kind = Literal["none", "memory", "disk", "auto"]

#: `auto` decodes beforehand only what is read at least this often, and takes at most this share of memory or disk.
_PASSES = 2
_SHARE = 0.5
#: Images whose headers are read to estimate the size of all.
_SAMPLE = 1000

log = logging.getLogger(__name__)


@contextmanager
def _system_errors() -> Iterator[None]:
    """Turns what the system refuses (a file, a worker process) into a NotWritten, which all processes report."""
    try:
        yield
    except BrokenPipeError:  # of whoever reads the messages
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NotWritten(f"data.cache: {where}{error.strerror or error}") from error


class CachedDataset(FileDataset):
    """The images of another dataset, reduced to a bounded size and kept.

    Until `prepare` has been called, and for images that cannot be kept, each is decoded when it is asked for, to the
    same pixels.

    Attributes:
        kind: where they are kept.
        side: the shorter side in pixels, at most.
        wanted: what the decoder is asked for (see `Dataset.image_for`), so that a photograph far larger than `side` is
            decoded at a part of its size, and one that is not is the image that would be decoded without a cache.
        path: the file of `disk`.
    """

    def __init__(self, dataset: FileDataset, wanted: int | None, kind: Kind, workers: int | Literal["auto"]) -> None:
        """Args:
        dataset: whose images are files.
        wanted: the side that the views need (`crops.wanted_side`); None: full size.
        kind: where to keep them; `auto` must be resolved before they are prepared.
        workers: processes that decode; `auto`: one for each core.
        """
        super().__init__(dataset.options)
        self.dataset, self.kind, self._asked = dataset, kind, kind
        self.folder, self.files = dataset.folder, dataset.files
        self.info, self.labels = dataset.info, dataset.labels
        self.side = dataset.options.cache_size
        self.wanted = self.side if wanted is None else min(self.side, wanted)
        self._workers = usable_cores() if workers == "auto" else workers
        self._images: CachedImages | None = None
        images = self.folder.absolute()
        settings = f"{images} {self.info.name} {self.info.channels} {self.side} {self.wanted} {self.options.limit}"
        self._settings = os.fsencode(settings)
        folder = expanded(self.options.cache_dir or user_cache())
        self.path = folder / f"{images.name or 'images'}-{hashlib.sha256(self._settings).hexdigest()[:16]}.cache"

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        """Returns the image at the cache's size, whatever is wanted; not to be written to."""
        image = None if self._images is None else self._images[index]
        return self._decode(index) if image is None else image

    def read_ahead(self, indices: Sequence[int]) -> None:
        if self._images is not None:
            self._images.read_ahead(indices)

    def _decode(self, index: int) -> Tensor:
        image = self.dataset.image_for(index, self.wanted)
        size = self._reduced(*image.shape[-2:])
        if image.shape[-2:] == size:
            return image
        return F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]

    def _reduced(self, height: int, width: int) -> tuple[int, int]:
        """The size at which an image is kept; its shape stays, to the nearest pixel."""
        short = max(min(height, width), self.side)
        return round(height * self.side / short), round(width * self.side / short)

    def estimate(self) -> int:
        """Returns the bytes that all images take, by the headers of up to 1,000 of them."""

        def bytes_of(index: int) -> int:
            size = decoded_size(self.folder / self.files[index], self.wanted)
            return 0 if size is None else self.info.channels * math.prod(self._reduced(*size))

        sample = fixed_choice(len(self), _SAMPLE).tolist()
        with ThreadPoolExecutor() as pool:
            return sum(pool.map(bytes_of, sample)) * len(self) // len(sample)

    @cached_property
    def _key(self) -> bytes:
        # Of the files before they are read: if one changes meanwhile, the next run notices.
        return fingerprint(self.folder, self.files, b"%d " % FORMAT + self._settings)

    def resolve(self, passes: int) -> Kind:
        """Returns what `auto` is, if each image is going to be read `passes` times."""
        if self._kept() is not None:
            log.info("data.cache: auto is disk: all images are cached already")
            return "disk"
        if passes < _PASSES:
            log.info("data.cache: auto is none, since each image is read fewer than %d times", _PASSES)
            return "none"
        size, memory, disk = self.estimate(), available_memory(), free_disk(self.path.parent)
        fits = memory is not None and size <= _SHARE * memory
        kind: Kind = "memory" if fits else "disk" if size <= _SHARE * disk else "none"
        free = "an unknown part" if memory is None else decimal(memory)
        text = "data.cache: auto is %s: the images take about %s; %s of memory and %s of the disk are free"
        log.info(text, kind, decimal(size), free, decimal(disk))
        return kind

    def prepare(self) -> None:
        """Decodes the images, unless they are on disk already.

        To be called on every process of a group: one of each machine decodes, and the others wait for it. None may end
        before all are through, since what is in memory is opened by way of the one that decoded.

        Raises:
            UserError: there is not enough room, or the folder cannot be written to.
            SslError: writing failed, or a worker process died.
        """
        if self._images is None:
            try:
                with _system_errors():  # of the others, which open what the first one has made
                    self._images = distributed.first_of_machine(
                        self._in_memory if self.kind == "memory" else self._on_disk
                    )
            except NotWritten as error:
                if self._asked != "auto":
                    raise
                log.warning(f"{error}; training goes on without a cache, to the same pixels")

    @_system_errors()
    def _in_memory(self) -> CachedImages:
        memory, path = memory_file()
        self._write(memory, "memory", available_memory(), "data.cache=disk")
        images = self._opened(path)
        images.memory = memory
        return images

    @_system_errors()
    def _on_disk(self) -> CachedImages:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_suffix(".lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("data.cache: waiting for another process that is writing %s", self.path)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise self._unusable(error) from error
        with lock:
            images = self._kept() or self._written()
        kept = int((images.shapes[:, 0] > 0).sum())
        missing = "" if kept == len(self) else " (the others could not be read and are retried each time)"
        log.info("data.cache: %s of %s images%s from %s", f"{kept:,}", f"{len(self):,}", missing, self.path)
        return images

    def _written(self) -> CachedImages:
        """Writes the file of `disk`; what is unfinished then was left by a process that was killed."""
        removed = remove_dead(self.path.parent, glob.escape(self.path.name))
        if os.path.lexists(self.path):
            self.path.rmdir() if self.path.is_dir() and not self.path.is_symlink() else self.path.unlink()
            removed.append(self.path)
        for file in removed:
            log.info("data.cache: removed %s: incomplete, damaged, or made from images that have changed", file)
        with atomic_path(self.path) as temporary, temporary.open("wb") as opened:
            self._write(opened, str(self.path), free_disk(self.path.parent), "data.cache_dir to another disk")
        return self._opened(self.path)

    def _write(self, file: IO[bytes], where: str, free: int | None, remedy: str) -> None:
        size = self.estimate()
        if free is not None and size > free:
            raise UserError(
                f"data.cache: {self.kind}: the images take about {decimal(size)}, and {decimal(free)} is free; set "
                f"{remedy}, data.cache_size to less than {self.side}, or data.cache=none"
            )
        text = "data.cache: decoding %s images once, the shorter side at most %d pixels: about %s in %s"
        log.info(text, f"{len(self):,}", self.side, decimal(size), where)
        write_images(file, where, self._decode, len(self), self._workers, self._key)

    def _opened(self, path: Path) -> CachedImages:
        return CachedImages(path, len(self), self.info.channels, self._key)

    def _kept(self) -> CachedImages | None:
        """What is on the disk, if it was made from the images as they are now."""
        if not self.path.is_file():  # opening a pipe would wait for a writer
            return None
        try:
            return self._opened(self.path)
        except (FileNotFoundError, SslError):
            return None
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> UserError:
        reason = error.strerror or error
        return UserError(f"data.cache_dir: cannot use {self.path.parent} ({reason}); set it to another folder")


def open_cached(dataset: D, wanted: int | None, passes: int, workers: int | Literal["auto"]) -> D | CachedDataset:
    """Returns a dataset with the cache that its options ask for, not made yet; itself where they ask for none.

    Args:
        dataset: any; only those whose images are files have the option.
        wanted: the side that the views need (`crops.wanted_side`).
        passes: how often each image is going to be read; decides what `auto` is.
        workers: processes that decode; `auto`: one for each core.

    Raises:
        SslError: it cannot be decided what `auto` is; on every process of a group.
    """
    if not isinstance(dataset, FileDataset) or dataset.options.cache == "none":
        return dataset
    cached = CachedDataset(dataset, wanted, dataset.options.cache, workers)
    if cached.kind == "auto":

        def resolved() -> Kind | SslError:
            try:
                with _system_errors():
                    return cached.resolve(passes)
            except SslError as error:
                return error

        # On the first process of each machine, which looks at all files here and not again when it decodes them.
        found = distributed.from_main(distributed.first_of_machine(resolved))
        if isinstance(found, SslError):
            raise found
        cached.kind = found
    return dataset if cached.kind == "none" else cached
