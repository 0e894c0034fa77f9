"""BYOL: the online network predicts a slowly moving copy's projection of another view; no negatives.

Grill et al., *Bootstrap Your Own Latent*, https://arxiv.org/abs/2006.07733. Norm and weight standardization of the
heads are options, to reproduce Richemond et al., *BYOL works even without batch statistics*,
https://arxiv.org/abs/2010.10241.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, Progress, RunInfo, Step, StepFunction
from sslcli.contracts.views import RecipeSection
from sslcli.losses import byol_regression, mean_cosines
from sslcli.modules import MomentumEncoder, build_head, each_view, global_and_local
from sslcli.modules.heads import AnyNormHeadOptions
from sslcli.modules.momentum import TargetMomentumOptions
from sslcli.modules.pairs import ViewsTogetherOptions


class BYOLProjectorOptions(AnyNormHeadOptions):
    """The projector, which the momentum encoder has too."""

    output_dim: int = Field(default=256, ge=1)
    """Dimension of the projection, and of the prediction."""


class BYOLOptions(ViewsTogetherOptions, TargetMomentumOptions):
    """Options of BYOL."""

    projector: BYOLProjectorOptions = BYOLProjectorOptions()
    """The head after the backbone."""
    predictor: AnyNormHeadOptions = AnyNormHeadOptions()
    """The head after the projector, of the online network only."""


class BYOL(Method):
    """BYOL: predicts the projection that a momentum encoder makes of the other view; no negatives.
    With p = predictor(projector(backbone(x))) and z′ from the momentum encoder: 2 − 2·cos(p₁, z′₂), both ways.

    With more views every view predicts the momentum encoder's projection of every other *global* view (those of the
    first one's size), and the loss is twice the mean over these pairs: with two views the paper's sum.
    """

    Options = BYOLOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2006.07733"
    year = 2020

    options: BYOLOptions

    def __init__(self, backbone: Backbone, options: BYOLOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        embedding = options.projector.output_dim
        self.projector = build_head(options.projector, backbone.spec.feature_dim)
        self.predictor = build_head(options.predictor, embedding, output_dim=embedding)
        self.momentum_encoder = MomentumEncoder(backbone=backbone, projector=self.projector)

    @classmethod
    def recipe(cls, options: BYOLOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """The paper's two different views, with the blur's kernel of its authors' code; for small images similar ones
        without blur."""
        return {"preset": "cifar_asym"} if image_size <= 64 else {"preset": "byol", "blur": {"kernel": 0.1}}

    @classmethod
    def defaults(cls, options: BYOLOptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {"name": "lars", "lr": 0.2, "weight_decay": 1.5e-6, "scale_lr": "batch/256"},
            "schedule": {"name": "cosine", "warmup_epochs": 10},
        }

    @classmethod
    def minimum_images(cls, options: BYOLOptions) -> int:
        return 1  # batch norm, if there is any, says what it needs

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the mean cosines of pairs, and the first view's features. Raises UserError if there are not
        two global views or more, the first ones."""
        x, global_views = global_and_local(batch, "byol")
        together = self.options.views_together
        h = each_view(self.backbone, x, together)  # N×D each
        z = each_view(self.projector, h, together)  # N×E each
        p = each_view(self.predictor, z, together)  # N×E each
        z_target = each_view(self.momentum_encoder, x[:global_views], together)  # N×E each, without gradient
        pairs = [(p[i], z_target[j]) for i in range(len(x)) for j in range(global_views) if i != j]
        loss = 2 * torch.stack([byol_regression(*pair) for pair in pairs]).mean()
        return Step(loss, mean_cosines(pairs), features=h[0].detach())

    def schedules(self) -> dict[str, StepFunction]:
        """The EMA momentum m(t), by which the target follows after step t."""
        return {"momentum": self.options.momentum_schedule(self.run.total_steps)}

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        self.momentum_encoder.follow(
            backbone=self.backbone, projector=self.projector, value=self.options.momentum_at(progress)
        )
