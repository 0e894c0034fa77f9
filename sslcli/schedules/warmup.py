"""The linear warm-up with which every built-in schedule can begin."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, Self

from pydantic import Field, model_validator

from sslcli.contracts.errors import UserError
from sslcli.contracts.optimizer import Schedule, ScheduleOptions


class WarmupOptions(ScheduleOptions):
    """Options of the warm-up with which every schedule can begin."""

    warmup_epochs: float = Field(default=0.0, ge=0, le=1e9)
    """Epochs over which the value rises linearly to its base."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same in optimizer steps; only one of the two can be given."""
    warmup_start: float = Field(default=0.0, ge=0, le=1)
    """Where the warm-up starts, as a fraction of the base value."""
    warmup_start_lr: float | None = Field(default=None, ge=0)
    """Where the warm-up starts, as a learning rate to which `scale_lr` does not apply; instead of `warmup_start`."""
    warmup: Literal["linear", "linspace"] = "linear"
    """`linear` reaches the base one step after the warm-up (SimCLR, MoCo v3, Barlow Twins, VICReg), `linspace` at its
    last step (SwAV, DINO, solo-learn)."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps is not None and self.warmup_epochs:
            raise ValueError("give warmup_epochs or warmup_steps, not both")
        if self.warmup_start_lr is not None and self.warmup_start:
            raise ValueError("give warmup_start or warmup_start_lr, not both")
        return self


class Warmup(Schedule):
    """Linear warm-up over W steps, then `share`.

    The value at step t < W is base·(start + (1 − start)·t/W), with `linspace` the same with W − 1 in place of W (a
    warm-up of one step is its start then).
    """

    Options = WarmupOptions
    options: WarmupOptions

    def __init__(self, options: WarmupOptions, base: float, total_steps: int, steps_per_epoch: int) -> None:
        """Raises UserError if the warm-up is longer than the run, or starts above the base."""
        super().__init__(options, base, total_steps, steps_per_epoch)
        self.start = self.as_share("warmup_start_lr", options.warmup_start_lr, options.warmup_start)
        in_epochs = options.warmup_steps is None
        self.warmup = round(options.warmup_epochs * steps_per_epoch) if in_epochs else options.warmup_steps or 0
        if self.warmup > total_steps:
            key, value = ("epochs", f"{options.warmup_epochs:g}") if in_epochs else ("steps", str(options.warmup_steps))
            steps = f" ({self.warmup} steps)" if in_epochs else ""
            shorter = total_steps / steps_per_epoch / 10 if in_epochs else total_steps // 10
            raise UserError(
                f"schedule.warmup_{key}: a warm-up of {value} {key}{steps} is longer than the run of {total_steps} "
                f"steps: shorten it, to a tenth of the run with schedule.warmup_{key}={shorter:g}, or train longer "
                f"(training.epochs={math.ceil(10 * self.warmup / steps_per_epoch)})"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            steps = max(self.warmup - 1, 1) if self.options.warmup == "linspace" else self.warmup
            return self.base * (self.start + (1 - self.start) * step / steps)
        return self.base * self.share(step)

    def as_share(self, key: str, lr: float | None, share: float) -> float:
        """Returns the learning rate of option `key` as a share of the base, or `share` if it is None.

        Raises:
            UserError: it is above the base.
        """
        if lr is None:
            return share
        if lr > self.base:
            raise UserError(
                f"schedule.{key}: {lr:g} is above the learning rate that optimizer.lr and optimizer.scale_lr give, "
                f"{self.base:g}: lower the former or raise the latter"
            )
        return lr / self.base

    @abstractmethod
    def share(self, step: int) -> float:
        """Returns the value from step W on, as a share of the base."""
