"""What the trained probes share: their options, and what these build (optimizer, schedule, first weights).

Optimizer and schedule are sections as in a run's config (`optimizer={name: larc, clip: false}`, `schedule=step`), so
that every registered one can train a probe; only the learning rates are given beside them, as a list to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from sslcli.config.document import Document
from sslcli.config.options import validate
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import ParameterGroup
from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin, Role, Schedule
from sslcli.contracts.options import Options
from sslcli.optimizers.groups import check_patterns, effective_lr, set_rates, split_by_role, weight_decay_schedule
from sslcli.plugins import load


def as_list(value: Any) -> Any:
    """Turns a single value into a list of one (`lr=30`), as a tuple, which strict validation requires."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(as_list), Field(min_length=1)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_list), Field(min_length=1)]
Init = Literal["zero", "normal", "lecun"]
_FIRST: dict[Init, str] = {
    "zero": "zero",
    "normal": "weights of standard deviation 0.01",
    "lecun": "truncated normal weights of standard deviation 1/√D",
}


class RecipeOptions(Options):
    """What every probe is trained with, during or after a run."""

    optimizer: dict[str, Any] = Field(default={"name": "sgd"}, validate_default=True)
    """Any registered optimizer with its options except lr, as in a run's config: {name: larc, clip: false}."""
    schedule: dict[str, Any] = Field(default={"name": "cosine"}, validate_default=True)
    """Any registered schedule with its options (warmup_epochs, final_lr, milestones), as in a run's config."""

    @field_validator("optimizer", "schedule")
    @classmethod
    def _complete(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        section = info.field_name or ""
        default: dict[str, Any] = cls.model_fields[section].default
        if value.get("name") is None:
            value = {**default, **value, "name": default["name"]}
        given = {key: each for key, each in value.items() if key != "name"}
        if section == "optimizer" and "lr" in given:
            raise ValueError("takes no lr: set it outside the optimizer section, as lr")
        name, extra = value["name"], {"lr": 1.0} if section == "optimizer" else {}
        if not isinstance(name, str):
            raise ValueError(f"needs a name; see `ssl list {section}s`")
        try:
            options = validate(load(f"{section}s", name).Options, given | extra, repr(name), Document({}, {(): ""}))
        except UserError as error:
            raise ValueError("; ".join(line.removeprefix(": ") for line in str(error).splitlines())) from error
        return {"name": name, **{key: each for key, each in options.plain().items() if key != "lr"}}


class ProbeOptions(RecipeOptions):
    """Options that every probe of a frozen backbone has."""

    lr: Rates
    """Learning rates to choose from, before the optimizer's `scale_lr`; a single one is used as it is."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=256, ge=1)
    """Images per step; fewer if there are not that many, or if whole batches would omit more than a tenth of them."""
    init: Init = "zero"
    """The classifier's initial weights: zero (all classes equal, no randomness), normal with standard deviation 0.01
    (MoCo, SimSiam), or lecun: truncated normal with 1/√D for D features (BYOL); the biases are zero."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the training images, the same for each class, that is held out to choose among the settings."""
    refit: bool = True
    """Retrain the chosen one on all training images; false: test it as it is."""
    top: Counts = (1, 5)
    """Which top-k accuracies to report; k from the number of classes on is skipped, since it is always 1."""


@dataclass(frozen=True)
class Training:
    """How a probe is trained: what its options mean for a number of images.

    Attributes:
        optimizer: name and options but lr.
        schedule: name and options.
        epochs: passes.
        batch_size: images per step.
        init: the classifier's weights at the start.
    """

    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    epochs: int
    batch_size: int
    init: Init = "zero"

    @classmethod
    def of(cls, options: ProbeOptions, images: int, *, whole: bool = False) -> Training:
        """Returns what the options mean for a number of images.

        Args:
            options: the probe's.
            images: to train on.
            whole: only whole batches are made, which are smaller where more than a tenth of the images would be left
                out of each epoch otherwise.
        """
        size = min(options.batch_size, images)
        if whole and images % size > 0.1 * images:
            size = images // math.ceil(images / size)
        return cls(options.optimizer, options.schedule, options.epochs, size, options.init)

    def optimizer_for(self, lr: float) -> tuple[type[OptimizerPlugin], OptimizerOptions]:
        """Returns the optimizer's class, and its options with this learning rate, not scaled yet."""
        cls: type[OptimizerPlugin] = load("optimizers", self.optimizer["name"])
        values = {key: value for key, value in self.optimizer.items() if key != "name"}
        return cls, cls.Options.parse({**values, "lr": lr})

    def schedule_for(self, lr: float, steps_per_epoch: int) -> Schedule:
        """Returns the learning rate by step; UserError where the schedule's options do not fit (a warm-up too long)."""
        cls: type[Schedule] = load("schedules", self.schedule["name"])
        options = cls.Options.parse({key: value for key, value in self.schedule.items() if key != "name"})
        base = effective_lr(self.optimizer_for(lr)[1], self.batch_size)
        return cls(options, base, self.epochs * steps_per_epoch, steps_per_epoch)

    def describe(self) -> dict[str, Any]:
        """Returns what the protocol says of it."""
        return {
            "classifier": f"linear, from {_FIRST[self.init]}",
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }


class ScheduledOptimizer:
    """An optimizer whose learning rate and weight decay follow their schedules.

    Args:
        training: optimizer and schedule.
        lr: the learning rate, before the optimizer's `scale_lr`.
        steps: in an epoch.
        groups: the parameters.
        roles: the role of each name in the groups.

    Raises:
        UserError: the schedule's options do not fit the number of steps, or a pattern of `exclude_names` matches none.
    """

    def __init__(
        self, training: Training, lr: float, steps: int, groups: Sequence[ParameterGroup], roles: Mapping[str, Role]
    ) -> None:
        cls, options = training.optimizer_for(lr)
        check_patterns([name for group in groups for name in group.parameters], options)
        self.schedule = training.schedule_for(lr, steps)
        self.optimizer = cls.build([each for group in groups for each in split_by_role(group, roles, options)], options)
        self._decay = weight_decay_schedule(options, training.epochs * steps)

    def prepare(self, step: int) -> None:
        """Sets learning rate and weight decay for a step, counted from 0, before the optimizer takes it."""
        set_rates(self.optimizer, step, self.schedule, self._decay)


def curve_row(epoch: int, loss: float, lr: float, held_out: float | None) -> dict[str, Any]:
    """Returns a row of a curve: the mean training loss of an epoch, counted from 1, the learning rate at its first
    step, and the held-out accuracy after it. A loss that is not finite is None, since JSON has no infinity."""
    return {"epoch": epoch, "loss": finite(loss), "lr": lr, "held_out_top1": held_out}


def finite(value: float) -> float | None:
    """Returns the value, or None where it is not finite."""
    return value if math.isfinite(value) else None


def draw_weights(shape: Sequence[int], init: Init, seed: int) -> Tensor:
    """Returns a classifier's first weights (C, D) on the CPU, float32."""
    weights, generator = torch.zeros(tuple(shape)), torch.Generator().manual_seed(seed)
    if init == "normal":
        weights.normal_(std=0.01, generator=generator)
    elif init == "lecun":  # haiku's default, which cuts at two standard deviations and does not correct for it
        std = shape[-1] ** -0.5
        nn.init.trunc_normal_(weights, std=std, a=-2 * std, b=2 * std, generator=generator)
    return weights
