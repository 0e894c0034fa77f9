"""`data.cache`: images decoded once, at a bounded size, into memory or a file, from which every epoch reads them.

Crops come from the images at that size. Where it reduces nothing, they are bitwise those of the files themselves. An
image that cannot be read is not in the cache, and is treated as without one. When a file of the folder has changed, all
are decoded again.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from torch import Tensor

from sslcli import distributed
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import SslError, UserError
from sslcli.storage import atomic_path

from ..files import FileDataset
from ..paths import user_cache
from ..processes import usable_cores
from .build import Bound, build, estimate, system_errors
from .file import CachedImages, StaleCache, fingerprint, memory_file
from .room import available_memory, free_disk, size_text

Kind = Literal["none", "memory", "disk", "auto"]

#: `auto` decodes beforehand only what is read at least this often, and takes at most this share of memory or disk.
_PASSES = 2
_SHARE = 0.5

log = logging.getLogger(__name__)


class CachedDataset(Dataset):
    """The images of another data set, reduced to a bounded size and kept.

    Until `prepare` has been called, and for images that cannot be kept, each is decoded when it is asked for, to the
    same pixels.

    Attributes:
        kind: where they are kept.
        bound: how large.
        path: the file of `disk`.
    """

    def __init__(
        self, dataset: FileDataset, wanted: int | None, kind: Kind, workers: int | Literal["auto"] = "auto"
    ) -> None:
        """Args:
        dataset: whose images are files.
        wanted: the side that the views need (`crops.wanted_side`).
        kind: where to keep them; `auto` must be resolved before they are prepared.
        workers: processes that decode; `auto`: one for each core.
        """
        super().__init__(dataset.options)
        self.dataset, self.kind = dataset, kind
        self.info, self.labels = dataset.info, dataset.labels
        self.bound = Bound(dataset.options.cache_size, wanted)
        self._workers = usable_cores() if workers == "auto" else workers
        self._images: CachedImages | None = None
        self._memory: IO[bytes] | None = None
        self._folder = dataset.folder.absolute()
        info, bound, limit = self.info, self.bound, dataset.options.limit
        self._settings = f"{info.name} {info.channels} {bound.side} {bound.wanted} {limit}"
        name = hashlib.sha256(os.fsencode(f"{self._folder} {self._settings}")).hexdigest()[:16]
        folder = (dataset.options.cache_dir or user_cache()).expanduser()
        self.path = folder / f"{self._folder.name or 'images'}-{name}.cache"

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Tensor:
        return self.dataset.image(index)

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        """Returns the image at the cache's size, whatever is wanted; not to be written to."""
        image = None if self._images is None else self._images[index]
        return self.bound.image(self.dataset, index) if image is None else image

    def read_ahead(self, indices: Sequence[int]) -> None:
        if self._images is not None:
            self._images.read_ahead(indices)

    def name_of(self, index: int) -> str:
        return self.dataset.name_of(index)

    def path_of(self, index: int) -> Path | None:
        return self.dataset.path_of(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None}

    @cached_property
    def _key(self) -> bytes:
        return fingerprint(self._settings, self._folder, self.dataset.files)

    def resolve(self, passes: int) -> None:
        """Decides what `auto` is.

        Args:
            passes: how often each image is going to be read.

        Raises:
            UserError: the folder cannot be read.
        """
        if self._kept() is not None:
            log.info("data.cache: auto is disk: all images are there already")
            self.kind = "disk"
        elif passes < _PASSES:
            log.info("data.cache: auto is none, since each image is read less than %d times", _PASSES)
            self.kind = "none"
        else:
            size = estimate(self.dataset, self.bound)
            memory, disk = available_memory(), free_disk(self.path.parent)
            fits = memory is not None and size <= _SHARE * memory
            self.kind = "memory" if fits else "disk" if size <= _SHARE * disk else "none"
            free = "an unknown part" if memory is None else size_text(memory)
            log.info(
                "data.cache: auto is %s: the images take about %s; %s of memory and %s of the disk are free",
                self.kind, size_text(size), free, size_text(disk),
            )  # fmt: skip

    def prepare(self) -> None:
        """Decodes the images, unless they are on disk already.

        To be called on every process of a group: one of each machine decodes, and the others wait for it. None may end
        before all are through, since what is in memory is opened by way of the one that decoded.

        Raises:
            UserError: there is not enough room, or the folder cannot be written to.
            SslError: writing failed, or a worker process died.
        """
        if self._images is None:
            with system_errors():  # of the others, which open what the first one has made
                self._images = distributed.first_of_machine(self._made)

    @system_errors()
    def _made(self) -> CachedImages:
        if self.kind == "memory":
            self._memory, path = memory_file()
            self._build(path, "memory")
            return self._opened(path)
        with self._only_writer():
            images = self._kept()
            if images is None:
                unfinished = self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp")
                for file in (self.path, *unfinished):
                    if file.exists():
                        log.info("data.cache: %s is incomplete, damaged or of images that have changed: removed", file)
                        file.unlink()
                with atomic_path(self.path) as temporary:
                    self._build(temporary, str(self.path))
                images = self._opened(self.path)
        log.info("data.cache: %s from %s", images.count_text(), self.path)
        return images

    def _build(self, path: Path, where: str) -> None:
        size = estimate(self.dataset, self.bound)
        self._check_room(size)
        text = "data.cache: decoding %s images once, the shorter side at most %d pixels: about %s in %s"
        log.info(text, f"{len(self):,}", self.bound.side, size_text(size), where)
        key = self._key  # of the files before they are read: if one changes meanwhile, the next run notices
        build(path, self.dataset, self.bound, self._workers, key)

    def _opened(self, path: Path) -> CachedImages:
        return CachedImages(path, len(self), self.info.channels, self._key)

    def _kept(self) -> CachedImages | None:
        """What is on the disk, if it was made from the images as they are now."""
        try:
            return self._opened(self.path)
        except (FileNotFoundError, StaleCache):
            return None
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        """Waits until no other process writes the file. Whatever is unfinished then was left by one that was killed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_suffix(".lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("data.cache: waiting for another process that writes %s", self.path)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise self._unusable(error) from error
        with lock:
            yield

    def _unusable(self, error: OSError) -> UserError:
        reason = error.strerror or error
        return UserError(f"data.cache_dir: cannot use {self.path.parent} ({reason}); set it to another folder")

    def _check_room(self, size: int) -> None:
        folder, smaller = self.path.parent, f"data.cache_size to less than {self.bound.side}"
        if self.kind == "memory":
            free, remedy = available_memory(), f"free; set data.cache=disk, or {smaller}"
        else:
            free = free_disk(folder)
            remedy = f"free in {folder}; set data.cache_dir to a folder on another disk, {smaller}, or data.cache=none"
        if free is not None and size > free:
            raise UserError(
                f"data.cache: {self.kind}: the images take about {size_text(size)}, and {size_text(free)} is {remedy}"
            )


def open_cached(dataset: Dataset, wanted: int | None, passes: int, workers: int | Literal["auto"]) -> Dataset:
    """Returns a data set with the cache that its options ask for, not made yet; itself where they ask for none.

    Args:
        dataset: any; only those whose images are files have the option.
        wanted: the side that the views need (`crops.wanted_side`).
        passes: how often each image is going to be read; decides what `auto` is.
        workers: `training.workers`.

    Raises:
        SslError: it cannot be decided what `auto` is; on every process of a group.
    """
    if not isinstance(dataset, FileDataset) or dataset.options.cache == "none":
        return dataset
    cached = CachedDataset(dataset, wanted, dataset.options.cache, workers)
    if cached.kind == "auto":

        def resolved() -> Kind | SslError:
            try:
                if distributed.rank() == 0:
                    with system_errors():
                        cached.resolve(passes)
            except SslError as error:
                return error
            return cached.kind

        # By `first_of_machine`, since to look at all files may take longer than a message may.
        found = distributed.from_main(distributed.first_of_machine(resolved))
        if isinstance(found, SslError):
            raise found
        cached.kind = found
    return dataset if cached.kind == "none" else cached
