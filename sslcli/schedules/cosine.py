"""The schedule `cosine`: SGDR without restarts (Loshchilov, Hutter, https://arxiv.org/abs/1608.03983)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sslcli.modules.cosine import half_cosine

from .warmup import Warmup, WarmupOptions


class CosineOptions(WarmupOptions):
    """Options of the cosine schedule."""

    final: float = Field(default=0.0, ge=0, le=1)
    """Where the cosine ends, as a fraction of the base value."""
    final_lr: float | None = Field(default=None, ge=0)
    """Where the cosine ends, as a learning rate to which `scale_lr` does not apply; instead of `final`."""
    per_epoch: bool = False
    """The value changes once an epoch, as in MoCo, SimSiam and most linear evaluations, instead of at every step."""

    @model_validator(mode="after")
    def _one_final(self) -> Self:
        if self.final_lr is not None and self.final:
            raise ValueError("give final or final_lr, not both")
        return self


class Cosine(Warmup):
    """Falls along half a cosine after the warm-up.
    Half a cosine from the base value, at step W, to `final`.

    With T steps in the run the share at step t is final + (1 − final)·(1 + cos(π·(t − W)/(T − W)))/2, as in the papers'
    code: `final` would be reached at t = T, one step after the last. With `per_epoch` t is the epoch's first step.
    """

    Options = CosineOptions
    options: CosineOptions

    def __init__(self, options: CosineOptions, base: float, total_steps: int, steps_per_epoch: int) -> None:
        """Raises UserError as `Warmup` does, and if the cosine ends above the base."""
        super().__init__(options, base, total_steps, steps_per_epoch)
        self.final = self.as_share("final_lr", options.final_lr, options.final)

    def share(self, step: int) -> float:
        if self.options.per_epoch:
            step = max(step - step % self.steps_per_epoch, self.warmup)
        return half_cosine(1.0, self.final, step - self.warmup, self.total_steps - self.warmup)
