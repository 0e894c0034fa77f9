"""Finds the image files of a folder, and stores the paths of millions of them without a Python object for each."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from sslcli.contracts.errors import UserError

from .decode import EXTENSIONS

#: Of files that are skipped, this many are named.
_KINDS = 6


def image_files(folder: Path, skipped: Counter[str] | None = None, root: Path | None = None) -> Iterator[str]:
    """Yields the image files below a folder as paths relative to it, sorted, with `/` between the parts.

    Hidden files and folders are skipped; the case of extensions is ignored. Links are followed, but not to a folder
    that contains the root or is below it anyway, and every other folder is read once. A link that leads nowhere counts
    as an image that cannot be read, if it has the name of one.

    Args:
        folder: where to look.
        skipped: counts all other files that are not hidden, by kind.
        root: the folder of the whole dataset, if `folder` is a part of it.

    Raises:
        UserError: a folder cannot be listed.
    """
    skipped = Counter() if skipped is None else skipped
    own = {os.path.realpath(folder), os.path.realpath(folder if root is None else root)}
    above = {str(parent) for each in own for parent in Path(each).parents}
    linked: set[str] = set()
    # One for each level, with its real path: folders may be nested deeper than Python's calls.
    waiting = [(_sorted_entries(folder, ""), os.path.realpath(folder))]
    while waiting:
        entries, parent = waiting[-1]
        found = next(entries, None)
        if found is None:
            waiting.pop()
            continue
        path, entry = found
        kind = _kind(entry)
        if kind == "folder":
            link = entry.is_symlink()
            real = os.path.realpath(entry) if link else os.path.join(parent, entry.name)
            if link and (real in above or _is_below(real, own, linked)):
                skipped["links to a folder that is read anyway"] += 1
            elif not link and real in linked:  # a link into what another one leads to came first
                skipped["folders that a link has led to"] += 1
            else:
                if link:
                    linked.add(real)
                waiting.append((_sorted_entries(folder / path, f"{path}/"), real))
        elif not entry.name.lower().endswith(EXTENSIONS):
            suffix = os.path.splitext(entry.name)[1].lower()
            skipped[suffix if re.fullmatch(r"\.\w{1,9}", suffix) else "other"] += 1
        elif kind == "special":
            skipped["pipes and devices"] += 1
        else:
            yield path


def _sorted_entries(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The entries of a folder that are not hidden, with their paths, by name; those of one level stay in memory."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"data.root: {folder}: cannot be listed ({error.strerror or error})") from error
    return ((prefix + entry.name, entry) for entry in found)


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "special"]:
    """What an entry, or what it is a link to, is. A link that leads nowhere is a `file`, whose reading fails."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry)) else "special"
    except OSError:  # a link to itself, for example
        return "file"


def _is_below(target: str, *read: set[str]) -> bool:
    """Whether a real path is in one of the sets, or a folder above it from which it is found without hidden parts."""
    while not any(target in each for each in read):
        target, name = os.path.split(target)
        if name.startswith(".") or not name:
            return False
    return True


def skipped_files(skipped: Mapping[str, int]) -> str:
    """Returns how many files are no images, by kind, the most frequent first: `90 others skipped (.gif 60, .heic 30)`;
    nothing if there are none."""
    kinds = sorted(skipped.items(), key=lambda kind: (-kind[1], kind[0]))
    if len(kinds) > _KINDS:
        kinds = [*kinds[:_KINDS], ("more kinds", sum(count for _, count in kinds[_KINDS:]))]
    listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds)
    total = sum(skipped.values())
    return f"{total:,} other{'s' * (total > 1)} skipped ({listed})" if total else ""


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones; UserError if it cannot be listed."""
    return [name for name, entry in _sorted_entries(folder, "") if _kind(entry) == "folder"]


def user_cache() -> Path:
    """Returns the folder of files that only save time: sslcli/ in `$XDG_CACHE_HOME` or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME")
    home = os.path.expanduser("~")  # stays as it is for a user without a home directory, as containers have them
    base = Path(home, ".cache") if home != "~" else Path(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return Path(given or base) / "sslcli"


def fingerprint(folder: Path, names: Iterable[str], settings: bytes) -> bytes:
    """Returns 32 bytes: a hash of settings and of the names, sizes and modification times of a folder's files."""
    digest = hashlib.sha256(settings)
    prefix = str(folder.absolute())  # joined as text: a Path for each of a million images takes many times as long
    for name in names:
        path = os.path.join(prefix, name)
        try:
            state = os.stat(path)
            digest.update(os.fsencode(f"{path}\0{state.st_size} {state.st_mtime_ns}\n"))
        except OSError:
            digest.update(os.fsencode(f"{path}\0missing\n"))
    return digest.digest()


class PathList(Sequence[str]):
    """Strings in one tensor.

    Worker processes share it, while each would soon have a copy of a list of strings: reading a string writes its
    reference count.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._ends = torch.tensor([0, *map(len, encoded)], dtype=torch.int64).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def encoded(self, indices: Tensor) -> Iterator[bytes]:
        """Yields the strings at int64 (K,) as the file system encodes them, many times as fast as one by one."""
        characters = self._bytes.numpy()
        for start, stop in zip(self._ends[indices].tolist(), self._ends[indices + 1].tolist(), strict=True):
            yield characters[start:stop].tobytes()

    def digest(self) -> bytes:
        """Returns 32 bytes: a hash of all strings in their order."""
        digest = hashlib.sha256(self._ends.numpy().data)
        digest.update(self._bytes.numpy().data)
        return digest.digest()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # counts negative ones from the end and raises IndexError
        start, stop = self._ends[position : position + 2].tolist()
        return os.fsdecode(self._bytes[start:stop].numpy().tobytes())
