"""The schedule `step`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .warmup import Warmup, WarmupOptions


class MilestonesOptions(WarmupOptions):
    """Options of the schedule `step`."""

    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.6, 0.8)
    """When the value drops, as fractions of the run (including the warm-up)."""
    factor: float = Field(default=0.1, gt=0, le=1)
    """The value is multiplied by this at each milestone."""


class Milestones(Warmup):
    """Falls by a factor at each milestone.
    The base value × factor for each milestone passed: from step round(milestone·T) on, with T steps in the run."""

    Options = MilestonesOptions
    options: MilestonesOptions

    def share(self, step: int) -> float:
        passed = sum(step >= round(milestone * self.total_steps) for milestone in self.options.milestones)
        return self.options.factor**passed
