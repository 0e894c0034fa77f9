"""DINO: a student follows the sharpened, centered output of its own moving average, from small crops to large ones.

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, https://arxiv.org/abs/2104.14294.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, Progress, RunInfo, Step, StepFunction
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_reduce_mean
from sslcli.losses import dino_and_metrics, mean_cosines
from sslcli.modules import MomentumEncoder, as_one_batch, each_view, global_and_local
from sslcli.modules.dino_head import DINOHead
from sslcli.modules.drop_path import drop_path_rates, grow_drop_path, set_drop_path
from sslcli.modules.heads import Norm
from sslcli.modules.momentum import TargetMomentumOptions


class DINOHeadOptions(Options):
    """The head: an MLP with GELU, L2 normalization, and a weight-normalized linear layer to the prototypes."""

    layers: int = Field(default=3, ge=1, le=100)
    """Linear layers of the MLP."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Width of the MLP's hidden layers."""
    bottleneck_dim: int = Field(default=256, ge=1)
    """Dimension of the normalized vectors that are compared with the prototypes."""
    prototypes: int = Field(default=65536, ge=2)
    """Number of prototypes K; 4096 is plenty for CIFAR."""
    norm: Norm = "none"
    """Batch norm after each hidden layer, or none."""
    norm_last_layer: bool = True
    """Keep every prototype at length 1. Free lengths can be better, and can be unstable (the paper has them for
    ViT-S)."""


class DINOOptions(TargetMomentumOptions):
    """Options of DINO."""

    head: DINOHeadOptions = DINOHeadOptions()
    """The head after the backbone, of both student and teacher."""
    student_temperature: float = Field(default=0.1, gt=0)
    """Divides the student's logits."""
    teacher_temperature: float = Field(default=0.04, gt=0)
    """Divides the teacher's logits after its warm-up; smaller is sharper. At most the student's."""
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """The teacher's temperature in the first epoch of its warm-up."""
    teacher_temperature_warmup_epochs: int = Field(default=0, ge=0)
    """Epochs over which it rises linearly to `teacher_temperature`, a step per epoch; at most the run's."""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """Initial EMA momentum of the teacher; for batches of 256 the authors recommend 0.9995."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """EMA momentum of the center, the mean of the teacher's logits that is subtracted from them."""
    freeze_last_layer_epochs: float = Field(default=1.0, ge=0)
    """Epochs at the start in which the prototypes are frozen."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Drop-path rate of the student's last block, growing from 0 in the first; for the built-in ViTs, if their own rate
    is 0. The teacher has none with any backbone."""

    @model_validator(mode="after")
    def _teacher_is_the_sharper_one(self) -> Self:
        hottest, key = self.teacher_temperature, "teacher_temperature"
        if self.teacher_temperature_warmup_epochs and self.teacher_temperature_start > hottest:
            hottest, key = self.teacher_temperature_start, "teacher_temperature_start"
        if hottest > self.student_temperature:
            raise ValueError(
                f"{key} {hottest:g} is above student_temperature {self.student_temperature:g}: the teacher must be "
                "the sharper one, or both end in the uniform distribution"
            )
        return self


class DINO(Method):
    """DINO: a student matches the outputs of a teacher, its own moving average, on global and local views.
    Cross-entropy of the student's views with the teacher's global ones, each pair but a view with itself.

    Evaluated and exported: the teacher.
    """

    Options = DINOOptions
    batch_coupled = True  # the center, and batch norm where the backbone has it
    minimum_views = 2
    paper = "https://arxiv.org/abs/2104.14294"
    year = 2021

    options: DINOOptions
    center: Tensor

    def __init__(self, backbone: Backbone, options: DINOOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.head = DINOHead(backbone.spec.feature_dim, **dict(options.head))
        if not any(drop_path_rates(backbone)):
            grow_drop_path(backbone, options.drop_path)
        self.teacher = MomentumEncoder(backbone=backbone, projector=self.head)
        # It runs in training mode, for its batch norms, and must not draw.
        set_drop_path(self.teacher, 0.0)
        self.register_buffer("center", torch.zeros(options.head.prototypes))

    @classmethod
    def recipe(cls, options: DINOOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """The paper's two global and eight local views, which are others for a ViT than for a ResNet; for small images
        two different views, as other libraries do."""
        if image_size <= 64:
            return {"preset": "cifar_asym"}
        scales = {} if spec.patch_size is not None else {"global_scale": [0.14, 1.0], "local_scale": [0.05, 0.14]}
        return {"preset": "dino", "local_multiple": spec.size_multiple, **scales}

    @classmethod
    def defaults(cls, options: DINOOptions, spec: BackboneSpec) -> DefaultSections:
        """AdamW for a ViT; SGD for other networks (the README of the authors' code, section on ResNet-50)."""
        shared: DefaultSections = {
            "schedule": {"name": "cosine", "warmup_epochs": 10, "warmup": "linspace", "final_lr": 1e-6},
            "training": {"clip": {"norm": 3.0, "mode": "per_parameter"}},
            "backbone": {"zero_init_residual": False},
        }
        if spec.patch_size is None:
            sgd = {
                "name": "sgd",
                "lr": 0.03,
                "weight_decay": 1e-4,
                "exclude": ["norm", "bias"],
                "scale_lr": "batch/256",
            }
            return {"optimizer": sgd, **shared}
        return {
            "optimizer": {
                "name": "adamw",
                "lr": 5e-4,
                "weight_decay": 0.04,
                "final_weight_decay": 0.4,
                "exclude": ["norm", "bias"],
                "scale_lr": "batch/256",
            },
            **shared,
        }

    def schedules(self) -> dict[str, StepFunction]:
        """The teacher's temperature, which changes from epoch to epoch, and its EMA momentum."""
        momentum = self.options.momentum_schedule(self.run.total_steps)
        return {"teacher_temperature": self._teacher_temperature, "momentum": momentum}

    def _teacher_temperature(self, step: int) -> float:
        options = self.options
        epoch = step // self.run.steps_per_epoch
        warmup = min(options.teacher_temperature_warmup_epochs, self.run.epochs)
        if epoch >= warmup:
            return options.teacher_temperature
        start, end = options.teacher_temperature_start, options.teacher_temperature
        return start + (end - start) * epoch / max(warmup - 1, 1)

    @classmethod
    def minimum_images(cls, options: DINOOptions) -> int:
        return 1  # the center is a mean over many steps

    def chance_loss(self, images: int) -> float:
        return math.log(self.options.head.prototypes)

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the teacher's entropy, and the teacher's features of the first view.

        Metrics: `teacher_entropy` in nats; `kl`, the part of the loss that the student can reduce; `pos_cos` and
        `neg_cos` between the two networks' bottleneck vectors, over the global views.

        Raises:
            UserError: if there are not two global views or more, the first ones.
        """
        x, global_views = global_and_local(batch, "dino")  # V views, of which G are global
        h = each_view(self.backbone, x)  # N×D each
        z = self.head.embed(torch.cat(h))  # VN×bottleneck: all views together, for the head's batch norms
        student = self.head.last_layer(z).chunk(len(x))  # N×K each
        with torch.no_grad():
            teacher_h = self.teacher.backbone(as_one_batch(x[:global_views])).pooled  # GN×D
            teacher_z = self.teacher.projector.embed(teacher_h)  # GN×bottleneck
            logits = self.teacher.projector.last_layer(teacher_z)  # GN×K
        teacher, temperature = logits.chunk(global_views), batch.schedule["teacher_temperature"]
        loss, metrics = dino_and_metrics(student, teacher, self.center, self.options.student_temperature, temperature)
        ours, theirs = z.chunk(len(x))[:global_views], teacher_z.chunk(global_views)
        metrics |= mean_cosines([(s, t) for v, s in enumerate(ours) for g, t in enumerate(theirs) if g != v])
        features = teacher_h.chunk(global_views)[0]
        return Step(loss, metrics, features=features, carry={"teacher_mean": logits.mean(dim=0)})

    def after_backward(self, progress: Progress) -> None:
        if progress.step < self.options.freeze_last_layer_epochs * progress.steps_per_epoch:
            # None, not 0: neither decay nor momentum may move a frozen layer.
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        self.teacher.follow(backbone=self.backbone, projector=self.head, value=self.options.momentum_at(progress))
        mean = all_reduce_mean(torch.stack([each["teacher_mean"] for each in carry]).mean(dim=0))
        self.center.lerp_(mean, 1 - self.options.center_momentum)

    def encoder(self) -> Backbone:
        """The teacher's backbone, which the paper finds to be better than the student's throughout (section 5.3)."""
        backbone: Backbone = self.teacher.backbone
        return backbone
