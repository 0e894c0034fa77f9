"""How much memory and disk an image cache may take."""

from __future__ import annotations

import shutil
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
#: The control group of this process (a container's, a batch job's), and where version 2 of them is mounted.
_GROUP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Returns the bytes of memory that may be taken without swapping, within the limits of control groups (version 2).

    None where the system doesn't say (it is not Linux).
    """
    try:
        free = _table(_MEMINFO)["MemAvailable:"] * 1024
    except (OSError, KeyError, ValueError):
        return None
    lines = _GROUP.read_text().splitlines() if _GROUP.exists() else []
    group = _MOUNT / next((line[4:] for line in lines if line.startswith("0::/")), "")
    for folder in (group, *group.parents):  # each of them may have a limit
        try:
            limit = int((folder / "memory.max").read_text())
            taken = int((folder / "memory.current").read_text())
            free = min(free, limit - taken + _table(folder / "memory.stat")["inactive_file"])
        except (OSError, KeyError, ValueError):  # no such folder, or "max": no limit
            continue
    return max(0, free)


def _table(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def free_disk(folder: Path) -> int:
    """Returns the bytes free on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free
