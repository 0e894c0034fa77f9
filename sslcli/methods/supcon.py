"""SupCon: the views of all images of one class attract each other, those of other classes repel.

Khosla et al., *Supervised Contrastive Learning*, NeurIPS 2020, https://arxiv.org/abs/2004.11362.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.losses import class_cosines, sup_con
from sslcli.losses.sup_con import Anchors
from sslcli.modules import ProjectorOptions, each_view, global_and_local
from sslcli.modules.heads import Norm, contrastive_projector


class SupConProjectorOptions(ProjectorOptions):
    """The projector: linear–ReLU–linear, as in the authors' code."""

    norm: Norm = "none"
    """Batch norm after the linear layers, or none."""
    last_bias: bool = True
    """Whether the last linear layer has a bias; with batch norm it has none, since one follows."""

    legacy: ClassVar[Mapping[str, Any]] = {"norm": "batch", "last_bias": False}


class SupConOptions(MethodOptions):
    """Options of SupCon."""

    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosines in the loss."""
    base_temperature: float = Field(default=0.07, gt=0)
    """The loss is multiplied by temperature / base_temperature; nothing else depends on it."""
    normalize_features: bool = False
    """Scale the features to length 1 before the projector, as the authors' ImageNet code does with a projector of one
    linear layer."""
    contrast: Anchors = "all"
    """Which embeddings are anchors: `all`, or `one` view's, the first; they are compared with all views' either way."""
    projector: SupConProjectorOptions = Field(default_factory=SupConProjectorOptions)
    """The head between the features and the loss."""


class SupCon(Method):
    """SupCon: SimCLR with labels; images of one class attract each other.
    The supervised contrastive loss on the projections of two views or more."""

    Options = SupConOptions
    batch_coupled = True
    needs_labels = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2004.11362"
    year = 2020
    # The authors' code has a learning rate of 0.05 at its batch of 256 and decays every parameter.

    options: SupConOptions

    def __init__(self, backbone: Backbone, options: SupConOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.projector = contrastive_projector(options.projector, backbone.spec.feature_dim)

    @classmethod
    def recipe(cls, options: SupConOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        return {"preset": "supcon"}

    @classmethod
    def defaults(cls, options: SupConOptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 1e-4, "exclude": [], "scale_lr": "batch/256"},
            "schedule": {"name": "cosine", "warmup_epochs": 10},
            "backbone": {"zero_init_residual": False},
        }

    def chance_loss(self, images: int) -> float:
        options = self.options
        others = max(len(self.run.view_sizes), 2) * images - 1
        return options.temperature / options.base_temperature * math.log(others)

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the mean cosines of pairs of one class and of two, and the first views' features. Raises
        UserError if there are no labels, or not two global views or more, the first ones."""
        if batch.labels is None:
            raise UserError("method: supcon needs labels, but these images have none: use labeled data, or simclr")
        x, _ = global_and_local(batch, "supcon")
        h = each_view(self.backbone, x)  # N×D each
        options = self.options
        inputs = [F.normalize(view, dim=1) for view in h] if options.normalize_features else h
        z = torch.stack(each_view(self.projector, inputs), dim=1)  # N×V×E
        loss = sup_con(z, batch.labels, options.temperature, options.base_temperature, options.contrast)
        return Step(loss, class_cosines(z, batch.labels), features=h[0].detach())
