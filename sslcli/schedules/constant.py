"""The schedule `constant`."""

from __future__ import annotations

from .warmup import Warmup


class Constant(Warmup):
    """Constant after the warm-up."""

    def share(self, step: int) -> float:
        return 1.0
