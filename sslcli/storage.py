"""Files that are written atomically and survive a power failure."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslcli.contracts.errors import UserError


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
        raise UserError(f"{path}: cannot be written ({error.strerror or error}){advice}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on leaving without an exception it is synced and renamed to `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # temporary files and safetensors' own are 0600
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
