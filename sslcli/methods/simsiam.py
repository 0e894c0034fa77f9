"""SimSiam: two views, a predictor on one side and a stop-gradient on the other, no negatives and no momentum encoder.

Chen & He, *Exploring Simple Siamese Representation Learning*, https://arxiv.org/abs/2011.10566.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, MethodOptions, ParameterGroup, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import negative_cosine
from sslcli.modules.heads import mlp
from sslcli.modules.pairs import prediction_cosines, two_views


class SimSiamProjectorOptions(Options):
    """The projector: linear–BN–ReLU, then linear–BN without scale and shift."""

    layers: int = Field(default=3, ge=1)
    """Linear layers; the paper has 3 on ImageNet and 2 on CIFAR-10."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=2048, ge=1)
    """Dimensions of the projection, and of the prediction."""


class SimSiamPredictorOptions(Options):
    """The predictor: linear–BN–ReLU, then a plain linear layer with bias."""

    hidden_dim: int = Field(default=512, ge=1)
    """Width of the hidden layer; a bottleneck, a quarter of the projection in the paper."""
    constant_lr: bool = True
    """Keep the predictor's learning rate at its base value while the rest follows the schedule."""


class SimSiamOptions(MethodOptions):
    """Options of SimSiam."""

    projector: SimSiamProjectorOptions = SimSiamProjectorOptions()
    """The head behind the backbone."""
    predictor: SimSiamPredictorOptions = SimSiamPredictorOptions()
    """The head behind the projector, on the side that is trained."""


class SimSiam(Method):
    """z = projector(backbone(x)), p = predictor(z); the loss is the mean of −cos(p₁, sg z₂) and −cos(p₂, sg z₁)."""

    Options: ClassVar[type[MethodOptions]] = SimSiamOptions
    batch_coupled: ClassVar[bool] = True
    view_count = 2
    paper: ClassVar[str] = "https://arxiv.org/abs/2011.10566"
    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": {
            "name": "sgd",
            "lr": 0.05,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "exclude": [],
            "scale_lr": "batch/256",
        },
        "schedule": {"name": "cosine"},
    }

    options: SimSiamOptions

    def __init__(self, backbone: Backbone, options: SimSiamOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        projector, predictor = options.projector, options.predictor
        self.projector = mlp(
            backbone.spec.feature_dim,
            projector.hidden_dim,
            projector.output_dim,
            projector.layers,
            last_norm="no_affine",
        )
        self.predictor = mlp(projector.output_dim, predictor.hidden_dim, projector.output_dim, layers=2)

    @classmethod
    def recipe(cls, options: SimSiamOptions, image_size: int) -> RecipeSection:
        """MoCo v2's views; without blur for small images, as the paper has it on CIFAR-10 (appendix D)."""
        return {"preset": "moco_v2", "blur": 0.0} if image_size <= 64 else {"preset": "moco_v2"}

    def forward(self, batch: Batch) -> Step:
        x1, x2 = two_views(batch, "simsiam")
        h1 = self.backbone(x1).pooled  # N×D; one view at a time, so that batch norm sees one view at a time
        h2 = self.backbone(x2).pooled
        z1, z2 = self.projector(h1), self.projector(h2)  # N×E
        p1, p2 = self.predictor(z1), self.predictor(z2)  # N×E
        loss = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        return Step(loss=loss, metrics=prediction_cosines((p1, z2), (p2, z1)), features=h1.detach())

    def parameter_groups(self) -> list[ParameterGroup]:
        """The predictor stands apart: its learning rate does not decay (section 4.2)."""
        main: dict[str, nn.Parameter] = {}
        predictor: dict[str, nn.Parameter] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (predictor if name.startswith("predictor.") else main)[name] = parameter
        constant = self.options.predictor.constant_lr
        return [ParameterGroup(main), ParameterGroup(predictor, name="predictor", constant_lr=constant)]
