"""BYOL: the online network predicts what a slowly moving copy of itself says of the other view; no negatives.

Grill et al., *Bootstrap Your Own Latent*, https://arxiv.org/abs/2006.07733. Norm and weight standardisation of the
heads are options, to repeat Richemond et al., *BYOL works even without batch statistics*,
https://arxiv.org/abs/2010.10241.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, MethodOptions, Progress, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import byol_regression
from sslcli.modules.heads import mlp
from sslcli.modules.momentum import MomentumEncoder, cosine_momentum
from sslcli.modules.norms import NormName
from sslcli.modules.pairs import prediction_cosines, two_views


class BYOLPredictorOptions(Options):
    """A head: linear–norm–ReLU, then a plain linear layer with bias."""

    layers: int = Field(default=2, ge=1)
    """Linear layers."""
    hidden_dim: int = Field(default=4096, ge=1)
    """Width of the hidden layers."""
    norm: NormName = "batch"
    """The norm behind each hidden layer."""
    groups: int = Field(default=32, ge=1)
    """How many groups the norm `group` makes."""
    weight_standardisation: bool = False
    """Bring every row of a layer's weights to mean 0 and variance 1/fan-in before use."""


class BYOLProjectorOptions(BYOLPredictorOptions):
    """The projector, which the momentum encoder has too."""

    output_dim: int = Field(default=256, ge=1)
    """Dimensions of the projection, and of the prediction."""


class BYOLOptions(MethodOptions):
    """Options of BYOL."""

    projector: BYOLProjectorOptions = BYOLProjectorOptions()
    """The head behind the backbone."""
    predictor: BYOLPredictorOptions = BYOLPredictorOptions()
    """The head behind the projector, on the online side alone."""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """How slowly the momentum encoder follows at first; a cosine takes it to 1, where it never moves, over the run."""


class BYOL(Method):
    """p = predictor(projector(backbone(x))), z′ from the momentum encoder; 2 − 2·cos(p₁, z′₂), both ways."""

    Options: ClassVar[type[MethodOptions]] = BYOLOptions
    batch_coupled: ClassVar[bool] = True
    view_count = 2
    paper: ClassVar[str] = "https://arxiv.org/abs/2006.07733"
    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": {"name": "lars", "lr": 0.2, "weight_decay": 1.5e-6, "scale_lr": "batch/256"},
        "schedule": {"name": "cosine", "warmup_epochs": 10},
    }

    options: BYOLOptions

    def __init__(self, backbone: Backbone, options: BYOLOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        embedding = options.projector.output_dim
        self.projector = _head(backbone.spec.feature_dim, options.projector, embedding)
        self.predictor = _head(embedding, options.predictor, embedding)
        self.momentum_encoder = MomentumEncoder(backbone, self.projector)

    @classmethod
    def recipe(cls, options: BYOLOptions, image_size: int) -> RecipeSection:
        """The paper's two unlike views; for small images the like without blur."""
        return {"preset": "cifar_asym" if image_size <= 64 else "byol"}

    def forward(self, batch: Batch) -> Step:
        x1, x2 = two_views(batch, "byol")
        h1 = self.backbone(x1).pooled  # N×D; one view at a time, so that batch norm sees one view at a time
        h2 = self.backbone(x2).pooled
        p1 = self.predictor(self.projector(h1))  # N×E
        p2 = self.predictor(self.projector(h2))
        z1, z2 = self.momentum_encoder(x1), self.momentum_encoder(x2)  # N×E, without gradient
        loss = byol_regression(p1, z2) + byol_regression(p2, z1)
        return Step(loss=loss, metrics=prediction_cosines((p1, z2), (p2, z1)), features=h1.detach())

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        # The run's own length, as the learning rate has it: the session may be asked to stop earlier.
        momentum = cosine_momentum(self.options.momentum, progress.step, self.run.total_steps)
        self.momentum_encoder.update(self.backbone, self.projector, momentum)


def _head(input_dim: int, options: BYOLPredictorOptions, output_dim: int) -> nn.Sequential:
    return mlp(
        input_dim,
        options.hidden_dim,
        output_dim,
        options.layers,
        norm=options.norm,
        groups=options.groups,
        weight_standardisation=options.weight_standardisation,
    )
