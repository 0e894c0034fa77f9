"""How much memory and disk there is to fill, and how it is said."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
#: The control groups of this process (a container's, a batch job's), and where they lie.
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
#: Their limit, what is taken, and which part of that is given back when it is asked for; of both versions.
_NAMES_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_NAMES_2 = ("memory.max", "memory.current", "inactive_file")


def available_memory() -> int | None:
    """Returns the bytes of memory that may be taken without swapping, within the limits of all control groups.

    None where the system doesn't tell (it is no Linux).
    """
    try:
        free = _table(_MEMINFO)["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError):
        return None
    for folder, (limit, used, inactive) in _groups():
        try:
            taken = int((folder / used).read_text()) - _table(folder / "memory.stat")[inactive]
            free = min(free, int((folder / limit).read_text()) - taken)
        except (OSError, KeyError, ValueError):  # "max": no limit
            continue
    return max(0, free)


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of this process's group and of all that it lies in: each may have a limit."""
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = _MOUNT, _NAMES_2
        elif "memory" in controllers.split(","):
            mount, names = _MOUNT / "memory", _NAMES_1
        else:
            continue
        group = mount / path.lstrip("/")  # of the host, in some containers: then only its outer folders are there
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                yield folder, names


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
