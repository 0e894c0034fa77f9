"""The log of a run, `metrics.jsonl`; no torch."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any


class Log:
    """A log that may still grow: each `read` parses what is new.

    Attributes:
        records: one for each line, in order, without lines that a kill or a power failure has damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._at, self._rest = 0, b""

    def read(self) -> list[dict[str, Any]]:
        """Returns the records that are there now; of a last line without an end, only if it is whole."""
        if not self.path.is_file():
            self._begin()
            return []
        with self.path.open("rb") as file:
            if self._at > file.seek(0, 2):  # it was written anew
                self._begin()
            file.seek(self._at)
            new = self._rest + file.read()
            self._at = file.tell()
        *lines, self._rest = new.split(b"\n")
        self.records += _parsed(lines)
        return [*self.records, *_parsed([self._rest])]


def _parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line.decode(errors="replace")))
    return [record for record in records if isinstance(record, dict) and type(record.get("step")) is int]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`, one record per line, without lines that a kill or a power failure has damaged."""
    return Log(path).read()


def finite(value: Any) -> float | None:
    """Returns a value of a log as a number; None if it is none, or not finite."""
    if type(value) not in (int, float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
