"""MoCo: a query finds its key among a queue of keys from a slowly moving encoder.

He et al., *Momentum Contrast for Unsupervised Visual Representation Learning*, https://arxiv.org/abs/1911.05722.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import DefaultSections, RunInfo
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection

from ._moco import SGD, QueueContrast, QueueOptions


class MoCoV1ProjectorOptions(Options):
    """The projector: one linear layer."""

    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings that the loss compares."""
    last_bias: bool = True
    """Whether the layer has a bias."""


class MoCoV1Options(QueueOptions):
    """Options of MoCo v1."""

    temperature: float = Field(default=0.07, gt=0)
    """Divides the cosines in the loss."""
    projector: MoCoV1ProjectorOptions = MoCoV1ProjectorOptions()
    """The head after the backbone."""


class MoCoV1(QueueContrast):
    """MoCo v1: tells the other view of an image from a queue of other images.
    InfoNCE with one linear layer after the backbone; the paper trains 200 epochs with batches of 256."""

    Options = MoCoV1Options
    paper = "https://arxiv.org/abs/1911.05722"
    year = 2019
    label: ClassVar[str] = "moco_v1"

    def __init__(self, backbone: Backbone, options: MoCoV1Options, run: RunInfo) -> None:
        dim = options.projector.output_dim
        super().__init__(
            backbone, options, run, nn.Linear(backbone.spec.feature_dim, dim, bias=options.projector.last_bias), dim
        )

    @classmethod
    def recipe(cls, options: MoCoV1Options, image_size: int, spec: BackboneSpec) -> RecipeSection:
        return {"preset": "moco_v1"}

    @classmethod
    def defaults(cls, options: MoCoV1Options, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": SGD,
            "schedule": {"name": "step", "milestones": [0.6, 0.8], "factor": 0.1},
            "backbone": {"zero_init_residual": False},
        }
