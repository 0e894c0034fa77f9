"""How much memory and disk there is to fill, and how it is said."""

from __future__ import annotations

import shutil
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")  # of a container: the limit that is its own


def available_memory() -> int:
    """Returns the bytes of memory that may be taken without swapping, within the container's limit if there is one.

    0 where the system doesn't tell (it is no Linux).
    """
    try:
        free = _table(_MEMINFO)["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError):
        return 0
    try:
        limit, used = (int((_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        used -= _table(_GROUP / "memory.stat")["inactive_file"]  # given back when it is asked for
    except (OSError, KeyError, ValueError):  # "max": no limit
        return free
    return max(0, min(free, limit - used))


def _table(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def free_disk(folder: Path) -> int:
    """Returns the bytes free on the disk of a folder that may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def size_text(count: int) -> str:
    """Returns a number of bytes as people say it: `2.4 GB`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
