"""Learning-rate schedules, each a pure function of the step: a linear warm-up, then a cosine, steps, or a constant.

The cosine is SGDR's without restarts (Loshchilov, Hutter, ICLR 2017, arXiv:1608.03983).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sslcli.contracts.errors import UserError
from sslcli.contracts.optimizer import Schedule, ScheduleOptions
from sslcli.modules.cosine import half_cosine


class WarmupOptions(ScheduleOptions):
    """The warm-up that every schedule can begin with."""

    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which the value rises linearly to its base."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same in optimizer steps; only one of the two can be given."""
    warmup_start: float = Field(default=0.0, ge=0, le=1)
    """Where the warm-up starts, as a share of the base."""
    warmup_start_lr: float | None = Field(default=None, ge=0)
    """Where the warm-up starts, as a learning rate, whatever `scale_lr` made of the base; instead of `warmup_start`."""
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


class _Warmed(Schedule):
    """Linear warm-up over W steps: the value at step t < W is base·(start + (1 − start)·t/W), and with `linspace` the
    same with W − 1 for W (a warm-up of one step is its start then); from step W on `share`."""

    Options: ClassVar[type[ScheduleOptions]] = WarmupOptions
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
            raise UserError(
                f"schedule.warmup_{key}: a warm-up of {value} {key}{steps} is longer than the run of {total_steps} "
                "steps: shorten it or train longer"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            steps = max(self.warmup - 1, 1) if self.options.warmup == "linspace" else self.warmup
            return self.base * (self.start + (1 - self.start) * step / steps)
        return self.base * self.share(step)

    def as_share(self, key: str, lr: float | None, share: float) -> float:
        """Returns the learning rate of the option `key` as a share of the base, or `share` if it is None."""
        if lr is None:
            return share
        if lr > self.base:
            raise UserError(
                f"schedule.{key}: {lr:g} is above the learning rate that optimizer.lr and optimizer.scale_lr make, "
                f"{self.base:g}: lower the one or raise the other"
            )
        return lr / self.base

    @abstractmethod
    def share(self, step: int) -> float:
        """Returns the value from step W on, as a share of the base."""


class Constant(_Warmed):
    """The base value all along, after the warm-up."""

    def share(self, step: int) -> float:
        return 1.0


class CosineOptions(WarmupOptions):
    """Options of the cosine schedule."""

    final: float = Field(default=0.0, ge=0, le=1)
    """Where the cosine ends, as a share of the base."""
    final_lr: float | None = Field(default=None, ge=0)
    """Where the cosine ends, as a learning rate, whatever `scale_lr` made of the base; instead of `final`."""

    @model_validator(mode="after")
    def _one_final(self) -> Self:
        if self.final_lr is not None and self.final:
            raise ValueError("give final or final_lr, not both")
        return self


class Cosine(_Warmed):
    """Half a cosine from the base value, at step W, to `final`.

    With T steps in the run the share at step t is final + (1 − final)·(1 + cos(π·(t − W)/(T − W)))/2, as in the papers'
    code: `final` would be reached at t = T, one step after the last.
    """

    Options: ClassVar[type[ScheduleOptions]] = CosineOptions
    options: CosineOptions

    def __init__(self, options: CosineOptions, base: float, total_steps: int, steps_per_epoch: int) -> None:
        """Raises UserError as every warm-up does, and if the cosine ends above the base."""
        super().__init__(options, base, total_steps, steps_per_epoch)
        self.final = self.as_share("final_lr", options.final_lr, options.final)

    def share(self, step: int) -> float:
        return half_cosine(1.0, self.final, step - self.warmup, self.total_steps - self.warmup)


class MilestonesOptions(WarmupOptions):
    """Options of the schedule `step`."""

    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.6, 0.8)
    """When the value falls, as shares of the run (warm-up included)."""
    factor: float = Field(default=0.1, gt=0, le=1)
    """What the value is multiplied with at each milestone."""


class Milestones(_Warmed):
    """The base value × factor for each milestone passed: from step round(milestone·T) on, with T steps in the run."""

    Options: ClassVar[type[ScheduleOptions]] = MilestonesOptions
    options: MilestonesOptions

    def share(self, step: int) -> float:
        passed = sum(step >= round(milestone * self.total_steps) for milestone in self.options.milestones)
        return self.options.factor**passed
