"""SimCLR: two views of an image attract, those of all other images repel.

Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020,
arXiv:2002.05709. Its second version (arXiv:2006.10029) has a projector of three layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.losses import nt_xent, pair_cosines
from sslcli.modules import ProjectorOptions, mlp


class SimCLROptions(MethodOptions):
    """Options of SimCLR."""

    temperature: float = Field(default=0.5, gt=0)
    """Divides the cosines in the loss; the paper has 0.5 on CIFAR-10 and 0.1 on ImageNet."""
    projector: ProjectorOptions = Field(default_factory=ProjectorOptions)
    """The head between the features and the loss; 3 layers make it version 2's."""


class SimCLR(Method):
    """NT-Xent on the projections of two views."""

    Options: ClassVar[type[MethodOptions]] = SimCLROptions
    batch_coupled: ClassVar[bool] = True
    view_count = 2
    paper: ClassVar[str] = "https://arxiv.org/abs/2002.05709"
    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"},
        "schedule": {"name": "cosine", "warmup_epochs": 10},
    }

    options: SimCLROptions

    def __init__(self, backbone: Backbone, options: SimCLROptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        head = options.projector
        feature_dim = backbone.spec.feature_dim
        self.projector = mlp(
            feature_dim,
            head.hidden_dim or feature_dim,
            head.output_dim,
            head.layers,
            norm=head.norm,
            last_norm="no_bias" if head.norm == "batch" else "none",
            last_bias=False,
        )

    @classmethod
    def recipe(cls, options: SimCLROptions, image_size: int) -> RecipeSection:
        return {"preset": "simclr"}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the mean cosines of positive and negative pairs, and the first views' features.

        Raises:
            UserError: if there are not two views of one size.
        """
        if len(batch.views) != 2:
            raise UserError(
                f"views: simclr needs exactly 2 views of an image, not {len(batch.views)}: set their counts"
            )
        first, second = (view.image for view in batch.views)
        if first.shape != second.shape:
            sizes = f"{first.shape[-1]} and {second.shape[-1]} pixels"
            raise UserError(f"views: simclr needs two views of one size, not {sizes}: give both the same size")
        # One pass over both views: the batch norms' statistics are those of all 2N images, as in the paper.
        features = self.backbone(torch.cat((first, second))).pooled  # 2N×D
        z1, z2 = self.projector(features).chunk(2)  # N×output_dim each
        loss = nt_xent(z1, z2, self.options.temperature)
        pos_cos, neg_cos = pair_cosines(z1, z2)
        return Step(loss, {"pos_cos": pos_cos, "neg_cos": neg_cos}, features=features[: len(first)].detach())
