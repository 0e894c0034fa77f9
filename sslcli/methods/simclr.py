"""SimCLR: views of one image attract each other, those of all other images repel.

Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020,
arXiv:2002.05709. Its second version is `simclr_v2`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.losses import pair_cosines, sup_con, view_cosines
from sslcli.losses.nt_xent import twin_logits, twin_loss, twins_found
from sslcli.modules import ProjectorOptions
from sslcli.modules.heads import contrastive_projector
from sslcli.modules.multicrop import by_resolution, global_count


class SimCLROptions(MethodOptions):
    """Options of SimCLR."""

    temperature: float = Field(default=0.5, gt=0)
    """Divides the cosines in the loss; the paper has 0.5 on CIFAR-10 and 0.1 on ImageNet."""
    projector: ProjectorOptions = Field(default_factory=ProjectorOptions)
    """The head between the features and the loss; 3 layers make it version 2's."""


class SimCLR(Method):
    """NT-Xent on the projections of two views; with more views, the mean over all pairs of an image's views."""

    Options = SimCLROptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2002.05709"
    defaults = {
        "optimizer": {"name": "lars_simclr", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"},
        "schedule": {"name": "cosine", "warmup_epochs": 10},
    }

    options: SimCLROptions

    def __init__(self, backbone: Backbone, options: SimCLROptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.projector = contrastive_projector(backbone.spec.feature_dim, options.projector)

    @classmethod
    def recipe(cls, options: SimCLROptions, image_size: int) -> RecipeSection:
        return {"preset": "simclr"}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the monitors of positive and negative pairs, and the first views' features.

        Raises:
            UserError: if there are not two views or more of the largest size, the largest first.
        """
        features, z = project_views(batch, self.backbone, self.projector, "simclr")
        return simclr_step(features, z, self.options.temperature)


def project_views(batch: Batch, backbone: Backbone, projector: nn.Module, method: str) -> tuple[Tensor, list[Tensor]]:
    """Passes all views through backbone and projector; what the contrastive methods have in common.

    The backbone sees the views of one size together, the projector all of them: the batch norms' statistics are those
    of all 2N images of two views, as in SimCLR.

    Args:
        batch: two views or more of one size, then any number of smaller ones.
        backbone: images (M, C, H, W) → features (M, D).
        projector: (M, D) → (M, E).
        method: for messages.

    Returns:
        the first view's features (N, D), detached, and each view's embeddings (N, E).

    Raises:
        UserError: for other views.
    """
    global_count(batch, method)

    def pooled(images: Tensor) -> Tensor:
        return backbone(images).pooled

    features = by_resolution(pooled, [view.image for view in batch.views])
    z = projector(torch.cat(features)).chunk(len(features))
    return features[0].detach(), list(z)


def simclr_step(features: Tensor, z: list[Tensor], temperature: float) -> Step:
    """Returns NT-Xent of the views' embeddings, with its monitors: the mean cosines of positive and negative pairs, and
    with two views how often an embedding's twin is found among all others.

    Args:
        features: (N, D), for `Step.features`.
        z: each view's embeddings (N, E).
        temperature: τ.
    """
    if len(z) == 2:
        logits = twin_logits(z[0], z[1], temperature)
        loss, found = twin_loss(*logits), twins_found(*logits)
        pos_cos, neg_cos = pair_cosines(z[0], z[1])
    else:  # with several positives there is no one to be found
        views = torch.stack(z, dim=1)
        loss, found = sup_con(views, None, temperature, base_temperature=temperature), {}
        pos_cos, neg_cos = view_cosines(views)
    return Step(loss, {**found, "pos_cos": pos_cos, "neg_cos": neg_cos}, features=features)
