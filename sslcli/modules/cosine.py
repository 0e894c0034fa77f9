"""Half a cosine from one value to another: what learning rates, weight decays and EMA momenta follow over a run."""

from __future__ import annotations

import math


def half_cosine(start: float, final: float, step: int, steps: int) -> float:
    """Returns final + (start − final)·(1 + cos(π·step/steps))/2, and `final` from step `steps` on."""
    progress = min(1.0, step / steps) if steps else 1.0
    return final + (start - final) * (1 + math.cos(math.pi * progress)) / 2
