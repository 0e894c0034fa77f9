"""The book of a pretended device: waits of the host, kernels, copies, slow multi-tensor calls, and races of streams."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sslcli

_PACKAGE = sslcli.__path__[0]


def place() -> str:
    """The two innermost lines of the package that the program is at, `callbacks/knn.py:57 < training/context.py:80`."""
    lines: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(lines) < 2:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            lines.append(f"{frame.f_code.co_filename[len(_PACKAGE) + 1 :]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "outside the package"


class Ledger:
    """Counts by section, which the caller names: a step, a log line, an epoch's monitors.

    Attributes:
        waits: (section, kind, place) → how often the host waited for the device.
        kernels: (section, phase) → kernels launched.
        copies: section → copies between host and device.
        slow: (section, operation, place) → multi-tensor calls that run one kernel for each tensor.
        races: (kind, place) → memory used, or given back, while another stream still works on it.
        devices: the devices on which tensors were created.
    """

    def __init__(self) -> None:
        self.section, self.phase = "rest", "rest"
        self.clear()

    def clear(self) -> None:
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.kernels: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[str] = Counter()
        self.slow: Counter[tuple[str, str, str]] = Counter()
        self.races: Counter[tuple[str, str]] = Counter()
        self.devices: set[str] = set()

    def wait(self, kind: str) -> None:
        self.waits[self.section, kind, place()] += 1

    def race(self, kind: str) -> None:
        self.races[kind, place()] += 1

    def kernel(self, count: int) -> None:
        self.kernels[self.section, self.phase] += count

    def per_tensor(self, operation: str) -> None:
        self.slow[self.section, operation, place()] += 1

    @contextmanager
    def during(self, section: str) -> Iterator[None]:
        """Names what the block belongs to."""
        before, self.section = self.section, section
        try:
            yield
        finally:
            self.section = before

    def plain(self) -> dict[str, Any]:
        """The same as lists, for JSON."""
        return {
            "waits": [[*key, count] for key, count in self.waits.items()],
            "kernels": [[*key, count] for key, count in self.kernels.items()],
            "copies": dict(self.copies),
            "slow": [[*key, count] for key, count in self.slow.items()],
            "races": [[*key, count] for key, count in self.races.items()],
            "devices": sorted(self.devices),
        }


ledger = Ledger()
