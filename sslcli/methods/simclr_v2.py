"""SimCLR's second version: a projector of three layers, the first of which can stay with the backbone afterward.

Chen, Kornblith, Swersky, Norouzi, Hinton, *Big Self-Supervised Models are Strong Semi-Supervised Learners*, NeurIPS
2020, https://arxiv.org/abs/2006.10029.
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator
from torch import nn

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import DefaultSections, RunInfo
from sslcli.modules import ProjectorOptions
from sslcli.modules.headed import HeadedBackbone, KeptLayersOptions

from .simclr import SimCLR, SimCLROptions


class SimCLRv2ProjectorOptions(ProjectorOptions):
    """The projector: linear–BN–ReLU twice, then linear–BN without β."""

    layers: int = Field(default=3, ge=1, le=100)
    """Number of linear layers."""


class SimCLRv2Options(SimCLROptions):
    """Options of SimCLR's second version."""

    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosines in the loss; 0.1 on ImageNet."""
    projector: SimCLRv2ProjectorOptions = Field(default_factory=SimCLRv2ProjectorOptions)
    """The head between the features and the loss."""
    keep_projector_layers: int = Field(default=0, ge=0)
    """Number of the projector's hidden layers that belong to the backbone for evaluation, export and fine-tuning; the
    paper fine-tunes from the first (1). It does not change training."""

    @model_validator(mode="after")
    def _keeps_hidden_layers(self) -> Self:
        kept, hidden = self.keep_projector_layers, self.projector.layers - 1
        if kept > hidden:
            raise ValueError(
                f"keep_projector_layers is {kept}, and a projector of {hidden + 1} layers has {hidden} hidden ones: "
                "keep fewer, or set more projector.layers"
            )
        return self


class SimCLRv2(SimCLR):
    """SimCLR v2: SimCLR with a deeper head, part of which is kept for fine-tuning.
    NT-Xent (or DCL, DCLW) on the projections of two views or more, as `simclr`."""

    Options = SimCLRv2Options
    paper = "https://arxiv.org/abs/2006.10029"
    year = 2020
    # By the command of the authors' README, for 100 epochs. The paper's 800 epochs: lr 0.1, warm-up over 40 epochs.
    label: ClassVar[str] = "simclr_v2"

    def __init__(self, backbone: Backbone, options: SimCLRv2Options, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        if options.keep_projector_layers:
            # The kept layers move from one module to the other after they were made: the same weights in either place,
            # and the same names (numbers) in the projector.
            hidden = [index for index, part in enumerate(self.projector) if isinstance(part, nn.ReLU)]
            end = hidden[options.keep_projector_layers - 1] + 1
            kept, self.projector = self.projector[:end], self.projector[end:]
            what = KeptLayersOptions(
                layers=options.keep_projector_layers,
                hidden_dim=options.projector.hidden_dim or backbone.spec.feature_dim,
                norm=options.projector.norm,
            )
            self.backbone = HeadedBackbone(backbone, what, kept)

    @classmethod
    def defaults(cls, options: SimCLROptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {"name": "lars_simclr", "lr": 0.075, "weight_decay": 1e-4, "scale_lr": "sqrt"},
            "schedule": {"name": "cosine", "warmup_epochs": 10},
        }
