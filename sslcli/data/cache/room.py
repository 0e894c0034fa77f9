"""How much memory and disk an image cache may take."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
#: The control group of this process (a container's, a batch job's), and where version 2 of them is mounted.
_GROUP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Returns the bytes of memory that may be taken without swapping, within the limits of control groups (version 2).

    All memory of the machine where the system doesn't say how much of it is available (it is not Linux).
    """
    if not _MEMINFO.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _table(_MEMINFO)["MemAvailable:"] * 1024
    lines = _GROUP.read_text().splitlines() if _GROUP.exists() else []
    group = _MOUNT / next((line[4:] for line in lines if line.startswith("0::/")), "")
    for folder in (group, *group.parents):  # each of them may have a limit
        try:
            limit = int((folder / "memory.max").read_text())
            taken = int((folder / "memory.current").read_text())
            free = min(free, limit - taken + _table(folder / "memory.stat")["inactive_file"])
        except (OSError, ValueError):  # no such folder, or "max": no limit
            continue
    return max(0, free)


def _table(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def free_disk(folder: Path) -> int:
    """Returns the bytes free on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if os.path.exists(each))).free
