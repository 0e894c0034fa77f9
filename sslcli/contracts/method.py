"""Contract of the group `sslcli.methods`: a self-supervised objective around a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from .backbone import Backbone
from .data import DataInfo
from .options import Options
from .views import RecipeSection

#: A value that changes while training: a pure function of the step, counted from 0.
StepFunction = Callable[[int], float]


class MethodOptions(Options):
    """Base of every method's options."""


@dataclass
class View:
    """One augmented version of each image: (N, C, H, W) float, normalized, on the device; mask (N, L) bool or None."""

    image: Tensor
    mask: Tensor | None = None


@dataclass
class Batch:
    """What a method's `forward` gets.

    Attributes:
        views: in the recipe's order.
        labels: (N,) int64 or None.
        index: (N,) int64 on the CPU, the images' places in the data set.
        schedule: 0-dim float tensors on the device, one for each of `Method.schedules()`.
    """

    views: list[View]
    labels: Tensor | None
    index: Tensor
    schedule: dict[str, Tensor]


@dataclass
class Step:
    """What a method's `forward` returns.

    Attributes:
        loss: 0-dim, float32.
        metrics: 0-dim tensors, detached, logged under their names.
        features: (N, D) detached backbone features of one view, for probes and the collapse watch.
        carry: detached tensors for `after_step` (a queue's new keys, say).
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    carry: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RunInfo:
    """What a method may know of the run it is built for."""

    total_steps: int
    steps_per_epoch: int
    epochs: int
    batch_size: int  #: images per optimizer step, over all processes and micro-batches
    world_size: int
    data: DataInfo


@dataclass(frozen=True)
class Progress:
    """Where the run stands: `step` optimizer steps are done (0 before the first), of `total_steps` in all epochs."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction."""
        return self.step / self.steps_per_epoch


@dataclass
class ParameterGroup:
    """Parameters that an optimizer treats alike, before they are split by role.

    Attributes:
        parameters: by name within the method.
        name: for logs.
        lr_multiplier: times the run's learning rate.
        constant_lr: the learning rate stays at its base value (SimSiam's predictor): no warm-up, no decay.
    """

    parameters: dict[str, nn.Parameter]
    name: str = "main"
    lr_multiplier: float = 1.0
    constant_lr: bool = False


class Method(nn.Module, ABC):
    """The loop calls `method(batch)` and nothing else.

    A method never moves tensors to a device, never calls an optimizer, and changes its state only in `after_step`.
    Everything that must survive a restart is a parameter or a buffer.

    Attributes:
        Options: the options' class.
        batch_coupled: its negatives or statistics come from the batch, so that accumulation changes the result.
        needs_labels: it is refused on data without labels.
        view_count: how many views of an image it needs; None: any number from `minimum_views` on. Others are refused
            with the config.
        minimum_views: the fewest views of an image that it can work with, where `view_count` is None.
        paper: where it is from, shown by `ssl list methods NAME`.
        defaults: config sections (`optimizer`, `schedule`) used where the config has none: the paper's; and keys of
            `training` used where the config's section does not have them.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    batch_coupled: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    view_count: ClassVar[int | None] = None
    minimum_views: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}

    backbone: Backbone

    def __init__(self, backbone: Backbone, options: Any, run: RunInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.run = run

    @classmethod
    @abstractmethod
    def recipe(cls, options: Any, image_size: int) -> RecipeSection:
        """Returns the paper's views for images of this size, as a `views:` section: `{"preset": "simclr"}`."""

    def schedules(self) -> dict[str, StepFunction]:
        """Returns the values that change with the step; they arrive in `batch.schedule` as tensors."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch) -> Step: ...

    def after_backward(self, progress: Progress) -> None:
        """Runs when gradients are complete and unscaled, before they are clipped."""

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        """Runs after the optimizer's step, without gradient: EMA, queue, center.

        Args:
            carry: `Step.carry` of each micro-batch, in order.
            progress: `progress.step` counts the step just made.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns every trainable parameter once, each in one group."""
        return [ParameterGroup({n: p for n, p in self.named_parameters() if p.requires_grad})]

    def encoder(self) -> Backbone:
        """Returns the backbone that is evaluated and exported (the teacher for some methods)."""
        return self.backbone
