"""Finds the image files of a folder, and stores the paths of millions of them without a Python object for each."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import torch

from .decode import EXTENSIONS

#: Of files that are skipped, this many are named.
_KINDS = 6


def image_files(folder: Path, skipped: Counter[str] | None = None) -> Iterator[str]:
    """Yields the image files below a folder as paths relative to it, sorted, with `/` between the parts.

    Hidden files and folders are skipped, links are followed, but not to a folder above; the case of extensions is
    ignored.

    Args:
        folder: where to look.
        skipped: counts all other files that are not hidden, by kind.
    """
    return _walk(folder, "", frozenset(), Counter() if skipped is None else skipped)


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]], skipped: Counter[str]) -> Iterator[str]:
    state = folder.stat()
    if (state.st_dev, state.st_ino) in above:
        return
    above |= {(state.st_dev, state.st_ino)}
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in found:
        if is_folder:
            yield from _walk(folder / name, f"{prefix}{name}/", above, skipped)
        elif name.lower().endswith(EXTENSIONS):
            yield prefix + name
        else:
            suffix = os.path.splitext(name)[1].lower()
            skipped[suffix if re.fullmatch(r"\.\w{1,9}", suffix) else "other"] += 1


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
    """Returns the names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


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
