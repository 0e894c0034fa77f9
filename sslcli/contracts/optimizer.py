"""Contracts of the groups `sslcli.optimizers` and `sslcli.schedules`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from .options import Options

#: A parameter's role, which decides on weight decay and LARS's trust ratio. `weight`: matrices and kernels; `norm`: a
#: norm layer's weight and bias; `bias`: any other bias; `embedding`: class tokens, positions, layer scales.
Role = Literal["weight", "norm", "bias", "embedding"]


class OptimizerOptions(Options):
    """Options that every optimizer has."""

    lr: float = Field(gt=0)
    """Base learning rate, before `scale_lr`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty (decoupled for AdamW)."""
    final_weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay at the end of the run, reached along half a cosine; null: constant."""
    exclude: tuple[Role, ...] = ("norm", "bias", "embedding")
    """Roles of parameters that get no weight decay (and, with LARS and LARC, no trust ratio); MoCo v1 and v2, SimSiam,
    SupCon and SwAV exclude none: []."""
    exclude_names: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Patterns of names of parameters to exclude as well, whatever their role, with the wildcards `*` and `?`:
    ["*.bias", "*.bn?.*"]. `exclude: []` excludes by name alone."""
    scale_lr: Literal["batch/256", "sqrt", "none"] = "none"
    """The base learning rate is lr × batch_size / 256, lr × √batch_size, or lr itself."""


class OptimizerPlugin(ABC):
    """Builds an optimizer."""

    Options: ClassVar[type[OptimizerOptions]] = OptimizerOptions
    paper: ClassVar[str] = ""

    @classmethod
    @abstractmethod
    def build(cls, groups: list[dict[str, Any]], options: Any) -> torch.optim.Optimizer:
        """Builds it.

        Args:
            groups: parameter groups with `params`, `names` and `roles` (lists, one entry per parameter), `lr`,
                `weight_decay` (0 where excluded), `name`, `excluded` (bool: neither decay nor trust ratio),
                `lr_multiplier` and `constant_lr` (see `ParameterGroup`). Every key must be kept in `param_groups`; the
                loop sets `lr` there before each step, and `weight_decay` if it changes.
            options: an instance of `Options`.

        A parameter whose gradient is None must be skipped: no decay, no momentum. Methods freeze parameters this way.

        All state must be in `optimizer.state[parameter]`, as tensors or plain numbers, so that checkpoints can name it.
        """


class ScheduleOptions(Options):
    """Base of every schedule's options."""


class Schedule(ABC):
    """The learning rate as a pure function of the step: `schedule(step)`, built once per run.

    It keeps no state: a resumed run builds it again and asks for the remaining steps.
    """

    Options: ClassVar[type[ScheduleOptions]] = ScheduleOptions

    def __init__(self, options: Any, base: float, total_steps: int, steps_per_epoch: int) -> None:
        """Args:
        options: an instance of `Options`.
        base: the highest value: the optimizer's `lr` after `scale_lr`.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps in an epoch.
        """
        self.options = options
        self.base = base
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Returns the learning rate of the step with index `step` (the first is 0), between 0 and `base`.

        Groups with an `lr_multiplier` get it times this value; those with `constant_lr` get it times `base`.
        """
