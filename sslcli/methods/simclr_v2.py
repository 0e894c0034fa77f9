"""SimCLR's second version: a projector of three layers, the first of which can stay with the backbone afterward.

Chen, Kornblith, Swersky, Norouzi, Hinton, *Big Self-Supervised Models are Strong Semi-Supervised Learners*, NeurIPS
2020, https://arxiv.org/abs/2006.10029.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.modules import ProjectorOptions
from sslcli.modules.headed import HeadedBackbone, KeptLayersOptions
from sslcli.modules.heads import contrastive_projector, split_head

from .simclr import project_views, simclr_step


class SimCLRv2ProjectorOptions(ProjectorOptions):
    """The projector: linear–BN–ReLU twice, then linear–BN without β."""

    layers: int = Field(default=3, ge=1)
    """Number of linear layers."""


class SimCLRv2Options(MethodOptions):
    """Options of SimCLR's second version."""

    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosines in the loss; 0.1 on ImageNet."""
    projector: SimCLRv2ProjectorOptions = Field(default_factory=SimCLRv2ProjectorOptions)
    """The head between the features and the loss."""
    keep_projector_layers: int = Field(default=0, ge=0)
    """So many of the projector's hidden layers belong to the backbone that is evaluated, exported and fine-tuned; the
    paper fine-tunes from the first (1). It changes nothing about the training."""

    @model_validator(mode="after")
    def _keeps_hidden_layers(self) -> Self:
        kept, hidden = self.keep_projector_layers, self.projector.layers - 1
        if kept > hidden:
            raise ValueError(
                f"keep_projector_layers is {kept}, and a projector of {hidden + 1} layers has {hidden} hidden ones: "
                "keep fewer, or set more projector.layers"
            )
        return self


class SimCLRv2(Method):
    """NT-Xent on the projections of two views or more, as `simclr`."""

    Options = SimCLRv2Options
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2006.10029"
    defaults = {
        "optimizer": {"name": "lars_simclr", "lr": 0.075, "weight_decay": 1e-4, "scale_lr": "sqrt"},
        "schedule": {"name": "cosine", "warmup_epochs": 10},
    }

    options: SimCLRv2Options

    def __init__(self, backbone: Backbone, options: SimCLRv2Options, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        feature_dim = backbone.spec.feature_dim
        self.projector = contrastive_projector(feature_dim, options.projector)
        if options.keep_projector_layers:
            # The kept layers move from one module to the other after they were made: the same weights in either place.
            kept, self.projector = split_head(self.projector, options.keep_projector_layers)
            what = KeptLayersOptions(
                layers=options.keep_projector_layers,
                hidden_dim=options.projector.hidden_dim or feature_dim,
                norm=options.projector.norm,
            )
            self.backbone = HeadedBackbone(backbone, what, kept)

    @classmethod
    def recipe(cls, options: SimCLRv2Options, image_size: int) -> RecipeSection:
        return {"preset": "simclr"}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the monitors of positive and negative pairs, and the first views' features.

        Raises:
            UserError: if there are not two views or more of the largest size, the largest first.
        """
        features, z = project_views(batch, self.backbone, self.projector, "simclr_v2")
        return simclr_step(features, z, self.options.temperature)
