"""Contract of the group `sslcli.methods`: a self-supervised objective around a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from .backbone import Backbone, BackboneSpec
from .batch import Batch as Batch
from .batch import DrawKeys as DrawKeys
from .batch import View as View
from .data import DataInfo
from .options import Options
from .views import RecipeSection

#: What `Method.defaults` returns: sections of a config by name.
DefaultSections = Mapping[str, Mapping[str, Any]]
#: A value that changes during training: a pure function of the step's index (the first is 0).
StepFunction = Callable[[int], float]


class MethodOptions(Options):
    """Base of every method's options."""


@dataclass
class Step:
    """What a method's `forward` returns.

    Attributes:
        loss: 0-dim, float32.
        metrics: 0-dim tensors, detached, logged under their names: means over the steps between two log lines.
        features: (N, D) detached backbone features of one view, for probes and the collapse monitor.
        carry: detached tensors for `after_step`, by names of the method's choice: what the update of its state needs
            from this forward pass (new keys for a queue, the batch mean for a center).
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    carry: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RunInfo:
    """What a method knows about its run when it is built.

    Attributes:
        view_sizes: side of every view in pixels, in the recipe's order; if they change in the run, those of the phase
            with the largest. Empty where a method is built without views, to load its weights.
    """

    total_steps: int
    steps_per_epoch: int
    epochs: int
    #: Images per step of all processes and micro-batches; an epoch's last has fewer with `training.drop_last: false`.
    batch_size: int
    world_size: int
    data: DataInfo
    view_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far the run is: `step` optimizer steps are done (0 before the first), of `total_steps` in all epochs.

    Attributes:
        shift: `made` − `step`: 0 unless a run was resumed with other batches or images and its epochs changed.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    shift: int = 0

    @property
    def made(self) -> int:
        """Optimizer steps that were made, as log lines and checkpoints count them."""
        return self.step + self.shift

    @property
    def epoch(self) -> float:
        """Epochs done, a fraction included."""
        return self.step / self.steps_per_epoch


@dataclass
class ParameterGroup:
    """Parameters with one learning rate, before they are split by role.

    Attributes:
        parameters: by name within the method.
        name: shown in logs.
        lr_multiplier: factor on the run's learning rate.
        constant_lr: the learning rate keeps its base value (SimSiam's predictor): no warm-up, no decay.
    """

    parameters: dict[str, nn.Parameter]
    name: str = "main"
    lr_multiplier: float = 1.0
    constant_lr: bool = False


class Method(nn.Module, ABC):
    """An objective, its heads, and the backbone that it trains.

    In each optimizer step the loop calls `method(batch)` and `loss.backward()` once per micro-batch, then
    `after_backward`; it clips the gradients, makes the optimizer's step, and calls `after_step`. A method never moves
    tensors to a device, never calls an optimizer, and changes its state only in `after_step`. Everything that must
    survive a restart is a parameter or a buffer.

    Attributes:
        Options: the options' class.
        batch_coupled: its negatives or statistics come from the batch: accumulation changes the result, and warns.
        needs_labels: data without labels is an error.
        view_count: how many views of an image it needs; None: `minimum_views` or more.
        minimum_views: the fewest views of an image that it can work with if `view_count` is None.
        paper, year: the paper's URL and year, for `ssl list methods`.
        needs: what it does not work without besides labels: any of "ViT", "teacher", "queue".
        frozen: names of submodules that are never trained, a teacher's for example: always in `eval()`, without
            gradients, not part of checkpoints. `__init__` makes them anew; a run is resumed only if they are the same.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    batch_coupled: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    view_count: ClassVar[int | None] = None
    minimum_views: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()
    frozen: ClassVar[tuple[str, ...]] = ()

    backbone: Backbone

    def __init__(self, backbone: Backbone, options: Any, run: RunInfo) -> None:
        """Args:
        backbone: the network to train; registered as `backbone`.
        options: an instance of `Options`.
        run: length, batch size and data of the run.
        """
        super().__init__()
        self.backbone, self.options, self.run = backbone, options, run

    def freeze(self) -> None:
        """Takes the gradients of the modules in `frozen`; called once, when the method has been built."""
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As for every module; those in `frozen` stay in `eval()`."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    @classmethod
    @abstractmethod
    def recipe(cls, options: Any, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """Returns the paper's views, as a `views:` section: `{"preset": "simclr"}`, or a list of views:
        `[{"crop_scale": [0.2, 1.0], "flip": 0.5}]`.

        Args:
            options: an instance of `Options`.
            image_size: side of the (largest) views in pixels.
            spec: the backbone that is to be trained. `patch_size` is None unless it is a vision transformer; the sides
                of all views must be multiples of `size_multiple`.
        """

    @classmethod
    def defaults(cls, options: Any, spec: BackboneSpec) -> DefaultSections:
        """Returns the paper's config sections for such a backbone.

        `optimizer` and `schedule` are used if the config has none; keys of `training` and `backbone` if the config's
        section does not set them. Of `backbone` only those count that the backbone has (initial weights, kinds of
        positions), and none may change its spec.
        """
        return {}

    def chance_loss(self, images: int) -> float | None:
        """Returns the loss (log n) of outputs that are alike for all of a micro-batch's images, if it has one value."""
        return None

    @classmethod
    def minimum_images(cls, options: Any) -> int:
        """Returns how few images of a micro-batch, over all processes, it can learn from."""
        return 2 if cls.batch_coupled else 1

    def visible_patches(self, batch: Batch) -> dict[str, tuple[int, Tensor]]:
        """Returns which patches of a view a part of the method sees, for pictures (`ssl preview`), as `forward` draws
        them: by the part's name (`visible`, `target 1`) the view's index and (N, L) bool, patches row by row. Empty for
        methods that hide nothing."""
        return {}

    def schedules(self) -> dict[str, StepFunction]:
        """Returns functions of the step's index by name; `batch.schedule` has their values at the step as tensors."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch) -> Step:
        """Returns the loss of a micro-batch; runs under autocast and changes no state but batch statistics."""

    def after_backward(self, progress: Progress) -> None:
        """Runs once per optimizer step, when gradients are complete and unscaled, before they are clipped.

        For methods that edit gradients: a parameter whose `grad` is set to None is frozen for this step.

        Args:
            progress: `progress.step` is the index of this step (0 in the first).
        """

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        """Runs once per optimizer step, after the optimizer, under `no_grad`: updates EMA copies, queues and centers.

        It also runs after a step that the gradient scaler skipped (fp16, gradients not finite).

        Args:
            carry: the `Step.carry` of every micro-batch of this step, in order: one entry without accumulation. On
                several processes these are this process's tensors: gather or average them (`sslcli.distributed`), so
                that the state stays equal on all.
            progress: `progress.step` includes the step just completed (1 after the first).
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns groups in which every trainable parameter is exactly once; by default one group of all."""
        return [ParameterGroup({n: p for n, p in self.named_parameters() if p.requires_grad})]

    def encoder(self) -> Backbone:
        """Returns the backbone that is evaluated and exported (the teacher for some methods)."""
        return self.backbone
