"""Results as JSON lines: each is on the disk before the next thing happens, from however many processes they come."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

#: What a process that does a job is told by its environment: the file of results, and the stage it works for.
FILE, STAGE = "SSLCLI_GPU_RESULTS", "SSLCLI_GPU_STAGE"


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds one line with one write, and waits until it is on the disk."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # what a killed process had begun
        os.write(descriptor, ("\n" * torn + json.dumps(record) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def note(name: str, **values: Any) -> None:
    """Adds a result to the file and the stage that the environment names."""
    append(Path(os.environ[FILE]), {"stage": os.environ[STAGE], "name": name, **values})


def read(path: Path) -> list[dict[str, Any]]:
    """Returns all complete lines, none if there is no file; one may have been cut off."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
