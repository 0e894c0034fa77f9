"""BYOL: the online network predicts what a slowly moving copy of itself says of another view; no negatives.

Grill et al., *Bootstrap Your Own Latent*, https://arxiv.org/abs/2006.07733. Norm and weight standardization of the
heads are options, to repeat Richemond et al., *BYOL works even without batch statistics*,
https://arxiv.org/abs/2010.10241.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import byol_regression
from sslcli.modules.heads import mlp
from sslcli.modules.momentum import MomentumEncoder
from sslcli.modules.multicrop import ViewsTogetherOptions, each_view, global_count
from sslcli.modules.norms import NormName
from sslcli.modules.pairs import prediction_cosines, target_pairs


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
    weight_standardization: bool = False
    """Bring every row of a layer's weights to mean 0 and variance 1/fan-in before use."""


class BYOLProjectorOptions(BYOLPredictorOptions):
    """The projector, which the momentum encoder has too."""

    output_dim: int = Field(default=256, ge=1)
    """Dimensions of the projection, and of the prediction."""


class BYOLOptions(ViewsTogetherOptions):
    """Options of BYOL."""

    projector: BYOLProjectorOptions = BYOLProjectorOptions()
    """The head behind the backbone."""
    predictor: BYOLPredictorOptions = BYOLPredictorOptions()
    """The head behind the projector, on the online side alone."""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """How slowly the momentum encoder follows at first; 0 copies the online network, 1 never moves."""
    final_momentum: float = Field(default=1.0, ge=0, le=1)
    """Where a cosine takes that over the run; the same as `momentum` keeps it fixed."""


class BYOL(Method):
    """p = predictor(projector(backbone(x))), z′ from the momentum encoder; 2 − 2·cos(p₁, z′₂), both ways.

    With more views every view predicts the momentum encoder's projection of every other *global* view (those of the
    first one's size), and the loss is twice the mean over these pairs: with two views the paper's sum.
    """

    Options = BYOLOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2006.07733"
    defaults = {
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
        global_views = global_count(batch, "byol")
        images = [view.image for view in batch.views]
        together = self.options.views_together
        h = each_view(lambda x: self.backbone(x).pooled, images, together=together)  # N×D each
        p = each_view(lambda x: self.predictor(self.projector(x)), h, together=together)  # N×E each
        z = each_view(self.momentum_encoder, images[:global_views], together=together)  # N×E each, without gradient
        pairs = [(p[view], z[target]) for view, target in target_pairs(len(images), global_views)]
        loss = 2 * torch.stack([byol_regression(*pair) for pair in pairs]).mean()
        return Step(loss=loss, metrics=prediction_cosines(*pairs), features=h[0].detach())

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        start, final, total = self.options.momentum, self.options.final_momentum, self.run.total_steps
        self.momentum_encoder.follow(self.backbone, self.projector, start, final, progress.step, total)


def _head(input_dim: int, options: BYOLPredictorOptions, output_dim: int) -> nn.Sequential:
    return mlp(
        input_dim,
        options.hidden_dim,
        output_dim,
        options.layers,
        norm=options.norm,
        groups=options.groups,
        weight_standardization=options.weight_standardization,
    )
