"""`data.cache`: images decoded once, at a bounded size, into memory or a file, from which every epoch reads them.

The crops come from the images at that size. Where it reduces nothing, they are to the bit those of the files
themselves. An image that cannot be read is not in the cache, and treated as without one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslcli import distributed
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import SslError, UserError

from ..files import FileDataset
from ..paths import user_cache
from ..processes import usable_cores
from .build import Bound, Numbers, Tell, decode_into, survey, system_errors
from .disk import fill, missing
from .file import FORMAT, CacheFolder, Rows, file_states
from .pixels import Pixels, memory_file
from .room import available_memory, free_disk, size_text

Kind = Literal["none", "memory", "disk", "auto"]

#: `auto` decodes beforehand what is read at least so often, and takes this share of the memory or the disk at most.
_PASSES = 2
_SHARE = 0.5


class CachedDataset(Dataset):
    """The images of another data set, reduced to a bounded size and kept.

    Until `prepare` has been called, and for images that cannot be kept, each is decoded when it is asked for, to the
    same pixels.

    Attributes:
        kind: where they are kept.
        bound: how large.
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
        self.bound = Bound.of(dataset.options.cache_size, wanted)
        self._workers = usable_cores() if workers == "auto" else workers
        self._pixels: Pixels | None = None
        self._memory: IO[bytes] | None = None
        self._sizes: Numbers | None = None
        folder = (dataset.options.cache_dir or user_cache()).expanduser()
        self.files = CacheFolder(folder, f"{dataset.folder.name or 'images'}-{self._key()}")

    def _key(self) -> str:
        path = self.dataset.folder.absolute()
        words = f"{FORMAT} {path} {self.info.channels} {self.bound.side} {self.bound.wanted}"
        return hashlib.sha256(os.fsencode(words)).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> Tensor:
        return self.dataset.image(index)

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        """Returns the image at the cache's size, whatever is wanted; not to be written to."""
        image = None if self._pixels is None else self._pixels[index]
        return self.bound.image(self.dataset, index) if image is None else image

    def read_ahead(self, indices: Sequence[int]) -> None:
        if self._pixels is not None:
            self._pixels.read_ahead(indices)

    def name_of(self, index: int) -> str:
        return self.dataset.name_of(index)

    def path_of(self, index: int) -> Path | None:
        return self.dataset.path_of(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None, "_sizes": None}

    def resolve(self, passes: int, tell: Tell) -> None:
        """Decides what `auto` is, and sees to it that there is room for what is missing.

        Args:
            passes: how often each image is going to be read.
            tell: shows a line to the user.

        Raises:
            UserError: there is not enough.
        """
        every = np.arange(len(self))
        if self.kind == "memory":
            self._check_memory(int(self._survey(every, tell).sum()))
            return
        absent = missing(self.files, self._states())
        if self.kind == "disk":
            self._check_disk(int(self._survey(absent, tell).sum()))
        elif not len(absent):
            tell("data.cache: auto is disk: all images are there already")
            self.kind = "disk"
        elif passes < _PASSES:
            tell(f"data.cache: auto is none, since each image is read less than {_PASSES} times")
            self.kind = "none"
        else:
            memory, disk = available_memory(), free_disk(self.files.folder)
            whole, rest = int(self._survey(every, tell).sum()), int(self._survey(absent, tell).sum())
            fits = memory is not None and whole <= _SHARE * memory
            self.kind = "memory" if fits else "disk" if rest <= _SHARE * disk else "none"
            tell(
                f"data.cache: auto is {self.kind}: the images take {size_text(whole)}, "
                f"{'an unknown part' if memory is None else size_text(memory)} of memory and {size_text(disk)} of the "
                "disk are free"
            )

    def prepare(self, tell: Tell) -> None:
        """Decodes what is not in the cache yet; what a process that was interrupted has done on disk is kept.

        To be called on every process of a group: one of each machine decodes, and the others wait for it. None may end
        before all are through, since what is in memory is opened by way of the one that decoded.

        Raises:
            UserError: there is not enough room, or the folder cannot be written to.
            SslError: writing failed, or a worker process died.
        """
        if self._pixels is None:
            with system_errors():  # of the others, which open what the first one has made
                self._pixels = distributed.first_of_machine(lambda: self._made(tell))
        self._sizes = None

    def _made(self, tell: Tell) -> Pixels:
        with system_errors():
            return self._on_disk(tell) if self.kind == "disk" else self._in_memory(tell)

    def _on_disk(self, tell: Tell) -> Pixels:
        def waiting() -> None:
            tell(f"data.cache: waiting for another process that writes {self.files.index_path}")

        with self.files.locked(waiting):
            return fill(
                self.files, self.dataset, self._states(), self.bound, self._workers, tell,
                measure=lambda places: self._survey(places, tell), check=self._check_disk,
            )  # fmt: skip

    def _in_memory(self, tell: Tell) -> Pixels:
        places = np.arange(len(self))
        sizes = self._survey(places, tell)
        total = int(sizes.sum())
        self._check_memory(total)
        tell(
            f"data.cache: decoding {len(self):,} images into memory, the shorter side at most {self.bound.side} "
            f"pixels: {size_text(total)}"
        )
        self._memory, path = memory_file()
        os.truncate(path, total)
        offsets = sizes.cumsum() - sizes
        shapes = np.concatenate(
            list(decode_into(path, self.dataset, places, offsets, sizes, self.bound, self._workers, tell))
        )
        shapes = shapes.clip(min=0)  # without `FAILED`
        pixels = Pixels(path, total, torch.from_numpy(np.column_stack([offsets, shapes])), self.info.channels)
        if pixels.others():
            tell(f"data.cache: {pixels.amount()} are in memory{pixels.others()}")
        return pixels

    def _states(self) -> Rows:
        # Joined as text: a Path for each of a million images takes many times as long.
        folder = str(self.dataset.folder.absolute())
        return file_states(os.path.join(folder, name) for name in self.dataset.files)

    def _survey(self, places: Numbers, tell: Tell) -> Numbers:
        """The bytes that images take; each file is looked at once."""
        if self._sizes is None:
            self._sizes = np.full(len(self), -1, dtype=np.int64)
        unknown = places[self._sizes[places] < 0]
        self._sizes[unknown] = survey(self.dataset, unknown, self.bound, self._workers, tell)
        return self._sizes[places]

    def _check_memory(self, wanted: int) -> None:
        free = available_memory()
        if free is not None and wanted > free:
            raise UserError(
                f"data.cache: memory: the images take {size_text(wanted)}, and {size_text(free)} is available; set "
                f"data.cache=disk, or data.cache_size to less than {self.bound.side}"
            )

    def _check_disk(self, wanted: int) -> None:
        free = free_disk(self.files.folder)
        if wanted > free:
            raise UserError(
                f"data.cache: disk: the images take {size_text(wanted)}, and {self.files.folder} has "
                f"{size_text(free)} free; set data.cache_dir to a folder on another disk, data.cache_size to less "
                f"than {self.bound.side}, or data.cache=none"
            )


def open_cached(
    dataset: Dataset, wanted: int | None, passes: int, workers: int | Literal["auto"], tell: Tell
) -> Dataset:
    """Returns a data set with the cache that its options ask for, not made yet; itself where they ask for none.

    Args:
        dataset: any; only those whose images are files have the option.
        wanted: the side that the views need (`crops.wanted_side`).
        passes: how often each image is going to be read; decides what `auto` is.
        workers: `training.workers`.
        tell: shows a line to the user.

    Raises:
        UserError: there is not enough room; on every process of a group.
    """
    if not isinstance(dataset, FileDataset) or dataset.options.cache == "none":
        return dataset
    cached = CachedDataset(dataset, wanted, dataset.options.cache, workers)

    def resolved() -> tuple[Kind, SslError | None]:
        try:
            if distributed.rank() == 0:
                with system_errors():
                    cached.resolve(passes, tell)
        except SslError as error:
            return cached.kind, error
        return cached.kind, None

    # To look at all files may take longer than a message may.
    cached.kind, problem = distributed.from_main(distributed.first_of_machine(resolved))
    if problem is not None:
        raise problem
    return dataset if cached.kind == "none" else cached
