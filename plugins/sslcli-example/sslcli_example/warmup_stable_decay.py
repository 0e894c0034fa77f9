"""Warm-up, a constant learning rate, and a decay over the last part of the run (WSD).

Hu et al., *MiniCPM*, arXiv:2404.06395, section 4; the decay by 1 − √p: Hägele et al., *Scaling Laws and Compute-Optimal
Training Beyond Fixed Training Durations*, arXiv:2405.18392.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from sslcli.contracts.optimizer import Schedule, ScheduleOptions


class WarmupStableDecayOptions(ScheduleOptions):
    """Options of warm-up, stable, decay; warm-up and decay are fractions of the run's steps."""

    warmup: float = Field(default=0.05, ge=0, le=1)
    """Fraction of the steps in which the learning rate rises linearly to its base value."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Fraction of the steps, at the end of the run, in which it falls."""
    shape: Literal["sqrt", "linear"] = "sqrt"
    """How it falls from 1 to 0 as p goes from 0 to 1: 1 − √p or 1 − p."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Where the decay ends, as a fraction of the base value."""

    @model_validator(mode="after")
    def _both_fit(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError("warmup and decay together are longer than the run")
        return self


class WarmupStableDecay(Schedule):
    """Linear warm-up, a constant learning rate, and a decay at the end."""

    Options = WarmupStableDecayOptions
    options: WarmupStableDecayOptions

    def __call__(self, step: int) -> float:
        warmup = round(self.options.warmup * self.total_steps)
        decay = round(self.options.decay * self.total_steps)
        if step < warmup:
            return self.base * (step + 1) / warmup
        p = max(0.0, step - (self.total_steps - decay)) / max(decay, 1)
        share = 1 - (math.sqrt(p) if self.options.shape == "sqrt" else p)
        return self.base * (self.options.final + (1 - self.options.final) * share)
