"""Files that are written atomically and survive a power failure, or grow by whole records whatever the disk does."""

from __future__ import annotations

import errno
import fnmatch
import functools
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sslcli.contracts.errors import UserError

log = logging.getLogger(__name__)

#: What only room helps against.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Records of a growing file that wait in memory for room, at most.
_WAITING = 100_000


def unwritable(error: OSError, *, again: str = "") -> str:
    """Returns why a file cannot be written, in the system's words, and what to do: make room, where there is none.

    Args:
        error: what the system said.
        again: what to do otherwise, or after that: `choose another --output`.
    """
    steps = ["make room there"] * (error.errno in _FULL) + [again] * bool(again)
    return f"cannot be written ({error.strerror or error})" + (f"; {' or '.join(steps)}" if steps else "")


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path with `~` expanded; UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user; for a folder of this name write ./{path}") from error


@contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turns an error of the file system within the block into a UserError that names the path, with the advice."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {unwritable(error, again=advice.removeprefix('; '))}") from error


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Returns the content of a file.

    Args:
        path: a regular file, or a link to one: opening a pipe or reading a device might never end.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no regular file, or larger.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("is not a regular file")
        if most is not None and status.st_size > most:
            raise OSError(f"has {status.st_size:,} bytes, more than {most:,}")
        return file.read()


#: Of this process, being written.
_mine: set[Path] = set()


@contextmanager
def atomic_path(path: Path, *, apart: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on leaving without an exception it is synced and renamed to `path`.

    Its name says which process of which machine it belongs to; what dead ones left in the folder is removed.
    An OSError that names no file, as that of a full disk, or only the temporary one, names `path`.

    Args:
        path: the file.
        apart: it is in a temporary folder, for writers that make further temporary files beside theirs.
    """
    remove_dead(path.parent)
    name = os.fsdecode(os.fsencode(path.name)[:150])  # what is added must fit too
    made = path.parent / f".{name}.{os.getpid()}-{_machine()}.{secrets.token_hex(4)}.tmp"
    temporary = made / path.name if apart else made
    _mine.add(made)  # before it is there, or another thread could take it for a dead process's
    try:
        if apart:
            made.mkdir()
        else:
            made.touch(exist_ok=False)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # temporary files and safetensors' own are 0600
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) in (os.fspath(made), os.fspath(temporary)):
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with suppress(OSError):  # on a disk that has become read-only it stays, and the first error matters
            _remove(made)
        _mine.discard(made)


def remove_dead(folder: Path, names: str | None = None) -> list[Path]:
    """Removes the temporary files in a folder that belong to dead processes of this machine, and returns them.

    Args:
        folder: if it cannot be listed, nothing is removed.
        names: a pattern (`fnmatch`) of files that nobody writes now, since the caller has their lock: temporary ones
            of them are removed whoever made them.
    """
    try:
        entries = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".tmp")]
    except OSError:
        return []
    dead = []
    for entry in entries:
        found, path = _TEMPORARY.fullmatch(entry), folder / entry
        if found is None or path in _mine:
            continue
        if (names is not None and fnmatch.fnmatchcase(found["name"], names)) or (
            found["machine"] == _machine() and not _is_alive(int(found["process"]))
        ):
            with suppress(OSError):
                _remove(path)
                dead.append(path)
    return dead


def is_temporary(path: Path) -> bool:
    """Returns whether a path is named as `atomic_path` names them."""
    return _TEMPORARY.fullmatch(path.name) is not None


_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.(?P<process>\d+)-(?P<machine>[0-9a-f]{8}))?\.\w+\.tmp", re.DOTALL)


@functools.cache
def _machine() -> str:
    """Where the number of a process means something: a hash of the host's name and the namespace of processes."""
    namespace = Path("/proc/self/ns/pid")
    where = f"{platform.node()} {os.readlink(namespace) if namespace.exists() else ''}"
    return hashlib.sha256(os.fsencode(where)).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    if process == os.getpid():  # of an earlier process of this number: what this one writes is known
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes a file's content, or a directory's entries, survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_output(path: Path) -> None:
    """Refuses a path for a new file before hours of work are done for it.

    Raises:
        UserError: it exists, its folder does not, or it cannot be written.
    """
    if path.exists():
        raise UserError(f"{path}: already exists; choose another --output")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the directory {path.parent} does not exist")
    with writing(path, "; choose another --output"):
        tempfile.TemporaryFile(dir=path.parent).close()


class Appending:
    """A file that grows by whole records. What cannot be written waits in memory and is written when it can be again.

    A full disk is reported once, and does not end the program. Half a record that it left is cut off before the next.

    Args:
        path: the file; records are added to what it holds.
        loss: what to do without it, for the warning: `training goes on`.
    """

    def __init__(self, path: Path, loss: str) -> None:
        self.path, self.loss = path, loss
        self._handle: int | None = None
        self._size = 0  # of whole records
        self._waiting: deque[bytes] = deque(maxlen=_WAITING)
        self._problem: OSError | None = None

    def write(self, record: bytes) -> None:
        """Adds a record; the system has it on return, though perhaps not yet the disk, or else it waits."""
        self._waiting.append(record)
        try:
            self._write_all()
        except OSError as error:
            if self._problem is None:
                log.warning(f"{self.path}: {unwritable(error)}; {self.loss}, and what is missing is added later")
            self._problem = error
            return
        if self._problem is not None:
            log.info(f"{self.path}: is written again; nothing is missing")
        self._problem = None

    def _write_all(self) -> None:
        if self._handle is None:
            self.path.parent.mkdir(exist_ok=True)
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            self._size = os.fstat(self._handle).st_size
        while self._waiting:
            record, done = self._waiting[0], 0
            if os.fstat(self._handle).st_size != self._size:
                os.ftruncate(self._handle, self._size)
            while done < len(record):
                done += os.pwrite(self._handle, record[done:], self._size + done)
            self._size += done
            self._waiting.popleft()

    def close(self) -> None:
        """Tries once more to write what waits, and tells what is lost."""
        if self._waiting:
            with suppress(OSError):
                self._write_all()
        if self._waiting:
            log.warning(f"{self.path}: {len(self._waiting):,} of its records could not be written and are lost")
            self._waiting.clear()
        if self._handle is not None:
            with suppress(OSError):
                if os.fstat(self._handle).st_size != self._size:
                    os.ftruncate(self._handle, self._size)
            with suppress(OSError):  # what a network's disk tells only now
                os.close(self._handle)
        self._handle = None
