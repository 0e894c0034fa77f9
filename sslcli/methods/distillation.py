"""Distillation: a student of any kind learns the features of a trained teacher, from images without labels.

The objectives are those that lightly-train describes for its `distillation` methods,
https://docs.lightly.ai/train/stable/pretrain_distill/methods/distillation.html; the queue is from Fang et al., *SEED:
Self-supervised Distillation For Visual Representation*, https://arxiv.org/abs/2101.04731. That teacher and student see
the same view: Beyer et al., *Knowledge distillation: A good teacher is patient and consistent*,
https://arxiv.org/abs/2106.05237.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, Progress, RunInfo, Step
from sslcli.contracts.options import FREE, Options
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather
from sslcli.losses import byol_regression, mean_cosines, queue_distillation_and_metrics, unit_rows
from sslcli.losses.rows import in_full_precision
from sslcli.modules import Queue, build_head, one_view
from sslcli.modules.maps import map_of, map_width, resize_map
from sslcli.runs.teacher import Teacher


class DistillationProjectorOptions(Options):
    """The heads from the student's to the teacher's dimension: linear–layer norm–GELU, then a linear layer."""

    layers: int = Field(default=1, ge=1, le=100)
    """Linear layers; with one the head is a linear map."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Width of the hidden layers, if there are any."""


class DistillationOptions(MethodOptions):
    """Options of distillation."""

    teacher: str = Field(json_schema_extra=FREE)  # it may have moved: a resumed run compares the weights
    """The trained network to learn from: a run, a checkpoint or a backbone file, or the name of a backbone with
    published weights (torchvision/resnet50)."""
    teacher_options: dict[str, Any] = Field(default_factory=dict, json_schema_extra=FREE)
    """Options of a teacher that is given by name, such as `weights`: a file of its weights."""
    teacher_size: int | None = Field(default=None, ge=1)
    """Resize the views for the teacher to so many pixels; null: it sees them as they are. Published weights are mostly
    of 224 px."""
    pooled: float = Field(default=1.0, ge=0)
    """Weight of the loss of the pooled features; 0: there is none."""
    tokens: float = Field(default=0.0, ge=0)
    """Weight of the loss of the patch tokens, or pixels of the last map; 0: there is none."""
    queue_size: int = Field(default=0, ge=0)
    """Embeddings of the teacher with which the pooled features are compared, as pseudo classes; 0: they are compared
    with the teacher's own. At most half of the images make sense."""
    temperature: float = Field(default=0.07, gt=0)
    """Divides the student's similarities with the queue."""
    teacher_temperature: float = Field(default=0.07, gt=0)
    """Divides the teacher's similarities with the queue."""
    projector: DistillationProjectorOptions = DistillationProjectorOptions()
    """The heads after the student, one for the pooled features and one for the tokens."""

    @model_validator(mode="before")
    @classmethod
    def _there_is_a_teacher(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("teacher"):
            raise ValueError(
                "teacher is missing: give a run or a backbone file, or the name of a backbone with published weights "
                "(teacher=torchvision/resnet50)"
            )
        return values

    @model_validator(mode="after")
    def _there_is_a_target(self) -> Self:
        if not (self.pooled or self.tokens):
            raise ValueError("pooled and tokens are both 0: give one of the two a weight")
        if self.queue_size and not self.pooled:
            raise ValueError("queue_size is for the pooled features: give pooled a weight, or take no queue")
        return self


class Distillation(Method):
    """Distillation: a student learns the pooled features of a frozen, trained teacher, its patch tokens, or both.
    Squared distance of unit vectors, or similarities with a queue; mean squared error of the tokens.

    Evaluated and exported: the student.
    """

    Options = DistillationOptions
    view_count = 1
    paper = "https://arxiv.org/abs/2101.04731"
    year = 2021
    needs = ("teacher",)
    frozen = ("teacher",)

    options: DistillationOptions

    def __init__(self, backbone: Backbone, options: DistillationOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        side = max(run.view_sizes, default=224)
        try:
            self.teacher = Teacher(options.teacher, run.data, options.teacher_size or side, options.teacher_options)
        except UserError as error:
            text = str(error).removeprefix("teacher ").replace(": backbone.", ": method.teacher_options.")
            raise UserError(f"method.teacher: {text}") from error
        taught = self.teacher.backbone
        head = partial(build_head, options.projector, norm="layer", activation=nn.GELU)
        if options.pooled:
            self.projector = head(backbone.spec.feature_dim, output_dim=taught.spec.feature_dim)
        if options.queue_size:
            self.queue = Queue(options.queue_size, taught.spec.feature_dim)
        if options.tokens:
            own = map_width(backbone, side, "backbone: method.tokens")
            given = map_width(taught, options.teacher_size or side, "method.teacher: method.tokens")
            self.token_projector = head(own, output_dim=given)

    @classmethod
    def recipe(cls, options: DistillationOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """lightly-train's view, of images of any size."""
        jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8}
        view = {"crop_scale": [0.14, 1.0], "interpolation": "bilinear", "flip": 0.5}
        return [{**view, "jitter": jitter, "grayscale": 0.2}]

    @classmethod
    def defaults(cls, options: DistillationOptions, spec: BackboneSpec) -> DefaultSections:
        """lightly-train's `distillationv3`: AdamW at 5e-4·√(B/1536), with more decay for transformers."""
        decay = 1e-6 if spec.patch_size is None else 0.04
        return {
            "optimizer": {"name": "adamw", "lr": 5e-4 / 1536**0.5, "weight_decay": decay, "scale_lr": "sqrt"},
            "schedule": {"name": "cosine", "warmup_epochs": 10},
            "training": {"clip": {"norm": 1.0, "mode": "global"}},
        }

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, its parts, how similar student and teacher are, and the student's features.

        Metrics: `pooled` and `tokens`, the losses without their weights; `pos_cos` and `neg_cos` between the student's
        and the teacher's embeddings; with a queue `teacher_entropy`.

        Raises:
            UserError: if there is not exactly one view.
        """
        x, options = one_view(batch, "distillation"), self.options
        student, teacher = self.backbone(x), self.teacher(self._resized(x))
        parts: dict[str, Tensor] = {}
        metrics, carry = {}, {}
        if options.pooled:
            s, t = self.projector(student.pooled), teacher.pooled  # N×D each
            metrics = mean_cosines([(s, t)])
            if options.queue_size:
                temperatures = options.temperature, options.teacher_temperature
                parts["pooled"], found = queue_distillation_and_metrics(s, t, self.queue.keys, *temperatures)
                metrics, carry = metrics | found, {"keys": unit_rows(t)}
            else:
                parts["pooled"] = byol_regression(s, t)
        if options.tokens:
            found_map = in_full_precision(self.token_projector(map_of(student)))  # N×h×w×D
            target = in_full_precision(map_of(teacher))  # N×H×W×D
            rows, columns = target.shape[1:3]
            parts["tokens"] = F.mse_loss(resize_map(found_map, (rows, columns), "bilinear"), target)
        loss = sum(getattr(options, name) * part for name, part in parts.items())
        metrics |= {name: part.detach() for name, part in parts.items()}
        return Step(loss, metrics, features=student.pooled.detach(), carry=carry)

    def _resized(self, x: Tensor) -> Tensor:
        """Views as large as the teacher takes them."""
        size = self.options.teacher_size
        if size is None or x.shape[-1] == size:
            return x
        return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        if self.options.queue_size:
            for each in carry:
                self.queue.push(all_gather(each["keys"]))
