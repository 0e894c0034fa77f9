"""The files of an image cache on disk: raw pixels that are only ever appended to, and an index of what is complete.

    NAME.index          rows: which file, in which state, lies where
    NAME.ID.pixels      height × width × channels bytes of one image after another
    NAME.lock           held by the process that writes

The index is replaced whole, after the pixels that it speaks of have been synced. So whatever a crash leaves behind its
last row is overwritten by whoever writes next, and readers never see a pixel change below them.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sslcli.contracts.errors import UserError

#: Goes into the files' names, so that another layout never meets these.
FORMAT = 1
#: A file's state, and where its pixels lie; height 0: it could not be read, or not as its header said.
ROW = np.dtype(
    [("path", "S16"), ("size", "<i8"), ("time", "<i8"), ("offset", "<i8"), ("height", "<i4"), ("width", "<i4")]
)
Rows = npt.NDArray[np.void]


class DamagedCache(Exception):
    """An index, or its pixels, are not what was written."""


@dataclass
class Index:
    """What is complete.

    Attributes:
        pixels: name of the file with the pixels.
        length: how many of its bytes count.
        rows: of `ROW`, one for each image.
    """

    pixels: str
    length: int
    rows: Rows


def file_states(paths: Iterable[str | os.PathLike[str]]) -> Rows:
    """Returns the present state of each file: the first three fields of `ROW`, all empty for one that is missing."""
    found = []
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            found.append((b"", 0, 0, 0, 0, 0))
            continue
        digest = hashlib.blake2b(os.fsencode(path), digest_size=16).digest()
        found.append((digest, state.st_size, state.st_mtime_ns, 0, 0, 0))
    return np.array(found, dtype=ROW)


def find(rows: Rows, states: Rows) -> npt.NDArray[np.int64]:
    """Returns for each state the place of the row that holds the same file in the same state, or −1."""
    if not len(rows):
        return np.full(len(states), -1, dtype=np.int64)
    order = np.argsort(rows["path"], kind="stable")
    place = np.searchsorted(rows["path"], states["path"], sorter=order)
    place = order[np.minimum(place, len(rows) - 1)]
    same = np.logical_and.reduce([rows[name][place] == states[name] for name in ("path", "size", "time")])
    return np.where(same & (states["path"] != b""), place, -1)


class CacheFolder:
    """The files of one cache: what was made of one folder's images at one size.

    Args:
        folder: where the files lie; made when it is written to.
        name: what their names begin with.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.index_path = folder / f"{name}.index"

    def read(self) -> Index | None:
        """Returns the index, None if there is none.

        Raises:
            DamagedCache: it was cut short or changed, or its pixels were, as far as their length tells.
            UserError: it is there and cannot be read.
        """
        try:
            content = self.index_path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"data.cache_dir: cannot read {self.index_path} ({error.strerror or error}); set it to another folder"
            ) from error
        body = content[32:]
        if len(content) < 32 or hashlib.sha256(body).digest() != content[:32]:
            raise DamagedCache(f"{self.index_path} is not what was written")
        head, _, rows = body.partition(b"\n")
        document = json.loads(head)
        index = Index(document["pixels"], document["length"], np.frombuffer(rows, dtype=ROW))
        pixels = self.folder / index.pixels
        length = pixels.stat().st_size if pixels.is_file() else -1
        if length < index.length:
            state = "is missing" if length < 0 else f"has {length:,} bytes, and {index.length:,} were written"
            raise DamagedCache(f"{pixels} {state}")
        return index

    def write(self, index: Index) -> None:
        """Makes an index the cache's, with the pixels that it speaks of safe on the disk."""
        _sync(self.folder / index.pixels)
        body = json.dumps({"pixels": index.pixels, "length": index.length}).encode() + b"\n" + index.rows.tobytes()
        temporary = self.index_path.with_suffix(".tmp")  # the lock keeps others from the same name
        temporary.write_bytes(hashlib.sha256(body).digest() + body)
        _sync(temporary)
        temporary.replace(self.index_path)
        _sync(self.folder)

    def begin(self) -> Index:
        """Returns an index of nothing, with a new and empty file for its pixels."""
        name = f"{self.name}.{os.urandom(4).hex()}.pixels"
        (self.folder / name).touch(exist_ok=False)
        return Index(name, 0, np.empty(0, dtype=ROW))

    def remove_others(self, index: Index) -> None:
        """Removes pixels that no index speaks of any more; who reads them still may go on."""
        for file in self.folder.glob(f"{glob.escape(self.name)}.*.pixels"):
            if file.name != index.pixels:
                file.unlink(missing_ok=True)

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keeps other processes from writing; the system lifts the lock from one that dies.

        Args:
            waiting: called when another process holds it.

        Raises:
            UserError: the folder cannot be written to.
        """
        import fcntl  # not on Windows

        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.folder / f"{self.name}.lock").open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise UserError(
                    f"data.cache_dir: cannot write to {self.folder} ({error.strerror or error}); set it to another "
                    "folder"
                ) from error
            yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
