"""MoCo v2: MoCo with SimCLR's MLP head, stronger views and a cosine schedule.

Chen, Fan, Girshick, He, *Improved Baselines with Momentum Contrastive Learning*, https://arxiv.org/abs/2003.04297.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import DefaultSections, RunInfo
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.modules import build_head

from ._moco import SGD, QueueContrast, QueueOptions


class MoCoV2ProjectorOptions(Options):
    """The projector: linear–ReLU–linear, without norms."""

    hidden_dim: int | None = Field(default=None, ge=1)
    """Width of the hidden layer; null: the backbone's feature dimension."""
    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings that the loss compares."""
    last_bias: bool = True
    """Whether the last linear layer has a bias."""


class MoCoV2Options(QueueOptions):
    """Options of MoCo v2."""

    projector: MoCoV2ProjectorOptions = MoCoV2ProjectorOptions()
    """The head after the backbone."""


class MoCoV2(QueueContrast):
    """MoCo v2: MoCo v1 with a larger head, stronger views and a cosine schedule.
    InfoNCE with an MLP of two layers after the backbone."""

    Options = MoCoV2Options
    paper = "https://arxiv.org/abs/2003.04297"
    year = 2020
    label: ClassVar[str] = "moco_v2"

    def __init__(self, backbone: Backbone, options: MoCoV2Options, run: RunInfo) -> None:
        projector = build_head(options.projector, backbone.spec.feature_dim, layers=2, norm="none")
        super().__init__(backbone, options, run, projector, options.projector.output_dim)

    @classmethod
    def recipe(cls, options: MoCoV2Options, image_size: int, spec: BackboneSpec) -> RecipeSection:
        return {"preset": "moco_v2"}

    @classmethod
    def defaults(cls, options: MoCoV2Options, spec: BackboneSpec) -> DefaultSections:
        return {"optimizer": SGD, "schedule": {"name": "cosine"}, "backbone": {"zero_init_residual": False}}
