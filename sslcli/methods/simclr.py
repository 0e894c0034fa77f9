"""SimCLR: views of one image attract each other, those of all other images repel.

Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020,
https://arxiv.org/abs/2002.05709. Its second version is `simclr_v2`. The losses `dcl` and `dclw` are of Yeh et al.,
*Decoupled Contrastive Learning*, ECCV 2022, https://arxiv.org/abs/2110.06848.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.losses import class_cosines, dcl_and_metrics, nt_xent_and_metrics, sup_con
from sslcli.modules import ProjectorOptions, each_view, global_and_local
from sslcli.modules.heads import contrastive_projector


class SimCLROptions(MethodOptions):
    """Options of SimCLR."""

    temperature: float = Field(default=0.5, gt=0)
    """Divides the cosines in the loss; the paper uses 0.5 on CIFAR-10 and 0.1 on ImageNet. Left out with `dcl` or
    `dclw` it is 0.1."""
    loss: Literal["nt_xent", "dcl", "dclw"] = "nt_xent"
    """NT-Xent, the paper's; the decoupled loss, whose denominator has only negatives, for small batches; or that one
    with smaller weights for positives that are alike already."""
    sigma: float = Field(default=0.5, gt=0)
    """`dclw`: σ, divides the cosines of positives in their weights."""
    projector: ProjectorOptions = Field(default_factory=ProjectorOptions)
    """The head between the features and the loss; with 3 layers it is version 2's."""

    @model_validator(mode="before")
    @classmethod
    def _decoupled_temperature(cls, values: Any) -> Any:
        """Sets DCL's temperature where none is given; a config written out in full stays what it is."""
        decoupled = isinstance(values, dict) and values.get("loss") in ("dcl", "dclw")
        return {"temperature": 0.1, **values} if decoupled else values

    @model_validator(mode="after")
    def _sigma_needs_weights(self) -> Self:
        if self.sigma != 0.5 and self.loss != "dclw":
            raise ValueError(f"sigma is for loss 'dclw', and loss is {self.loss!r}: leave it out")
        return self


class SimCLR(Method):
    """SimCLR: tells the other view of an image from all other images of the batch.
    NT-Xent on the projections of two views; with more views, the mean over all pairs of an image's views. Or the
    decoupled losses DCL and DCLW."""

    Options: ClassVar[type[MethodOptions]] = SimCLROptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2002.05709"
    year = 2020
    label: ClassVar[str] = "simclr"

    options: SimCLROptions

    def __init__(self, backbone: Backbone, options: SimCLROptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.projector = contrastive_projector(options.projector, backbone.spec.feature_dim)

    @classmethod
    def recipe(cls, options: SimCLROptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        return {"preset": "simclr"}

    @classmethod
    def defaults(cls, options: SimCLROptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {"name": "lars_simclr", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"},
            "schedule": {"name": "cosine", "warmup_epochs": 10},
        }

    def chance_loss(self, images: int) -> float:
        views = max(len(self.run.view_sizes), 2)
        return math.log(views * images - 1 if self.options.loss == "nt_xent" else max(views * (images - 1), 1))

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the mean cosines of positive and negative pairs, with two views how often an embedding's
        positive is found among all others, and the first view's features.

        The backbone's batch norms see the views of one size together, the projector's all views.

        Raises:
            UserError: if there are not two global views or more, the first ones.
        """
        x, _ = global_and_local(batch, self.label)
        h = each_view(self.backbone, x)  # N×D each
        z = each_view(self.projector, h)  # N×E each
        tau = self.options.temperature
        if self.options.loss != "nt_xent":
            sigma = self.options.sigma if self.options.loss == "dclw" else None
            loss, metrics = dcl_and_metrics(torch.stack(z, dim=1), tau, sigma)
        elif len(z) == 2:
            loss, metrics = nt_xent_and_metrics(z[0], z[1], tau)
        else:  # several positives for each anchor
            views = torch.stack(z, dim=1)  # N×V×E
            loss, metrics = sup_con(views, None, tau, base_temperature=tau), class_cosines(views, None)
        return Step(loss, metrics, features=h[0].detach())
