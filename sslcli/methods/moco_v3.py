"""MoCo v3: no queue; the negatives are the other keys of a large batch, and a predictor follows the projector.

Chen, Xie, He, *An Empirical Study of Training Self-Supervised Vision Transformers*, https://arxiv.org/abs/2104.02057.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, DefaultSections, Method, Progress, RunInfo, Step, StepFunction
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import batch_info_nce_and_metrics, mean_over
from sslcli.modules import MomentumEncoder, MomentumOptions, build_head, each_view, global_and_local
from sslcli.modules.pairs import ViewsTogetherOptions


class MoCoV3ProjectorOptions(Options):
    """The projector: linear–BN–ReLU, and at the end linear–BN without scale and shift; no biases."""

    layers: int | None = Field(default=None, ge=1, le=100)
    """Linear layers; null: 3 after a ViT, else 2."""
    hidden_dim: int = Field(default=4096, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=256, ge=1)
    """Dimension of the projection, and of the prediction."""


class MoCoV3PredictorOptions(Options):
    """The predictor: linear–BN–ReLU–linear, without biases."""

    hidden_dim: int = Field(default=4096, ge=1)
    """Width of the hidden layer."""
    last_norm: bool | None = None
    """End with a batch norm without scale and shift; null: after a ViT only."""


class MoCoV3Options(ViewsTogetherOptions, MomentumOptions):
    """Options of MoCo v3."""

    temperature: float | None = Field(default=None, gt=0)
    """Divides the cosines in the loss; null: 0.2 for a ViT, else 1."""
    projector: MoCoV3ProjectorOptions = MoCoV3ProjectorOptions()
    """The head after the backbone, which the momentum encoder has too."""
    predictor: MoCoV3PredictorOptions = MoCoV3PredictorOptions()
    """The head after the projector, of the online network only."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Initial EMA momentum of the momentum encoder; the paper uses 0.996 for 1000 epochs."""
    freeze_patch_projection: bool | None = None
    """Keep a ViT's patch projection at its initial values; null: wherever there is one."""


class MoCoV3(Method):
    """MoCo v3: contrasts views of a batch by a momentum encoder and a predictor, without a queue; also for ViTs.
    The loss is 2τ·CE of each query against the keys of the other view from all processes, summed over both directions.

    With more views, every global view (as large as the first) has a key, and every view is a query against the keys
    of all global views but itself. The loss is twice the mean over these pairs: with two views, the paper's sum.
    """

    Options = MoCoV3Options
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2104.02057"
    year = 2021

    options: MoCoV3Options

    def __init__(self, backbone: Backbone, options: MoCoV3Options, run: RunInfo) -> None:
        """Raises UserError if a patch projection is to be frozen and the backbone has none."""
        super().__init__(backbone, options, run)
        patches = getattr(backbone, "patch_projection", None)
        vit = isinstance(patches, nn.Module)
        if options.freeze_patch_projection and not vit:
            raise UserError(
                "method.freeze_patch_projection: this backbone has no patch projection: leave it null, or use a ViT"
            )
        if isinstance(patches, nn.Module) and options.freeze_patch_projection is not False:
            patches.requires_grad_(False)
        self.temperature = options.temperature or (0.2 if vit else 1.0)
        head, predictor, dim = options.projector, options.predictor, options.projector.output_dim
        layers = head.layers or (3 if vit else 2)
        self.projector = build_head(head, backbone.spec.feature_dim, layers=layers, last_norm="no_affine")
        normed = vit if predictor.last_norm is None else predictor.last_norm
        end = "no_affine" if normed else "none"
        self.predictor = build_head(predictor, dim, output_dim=dim, layers=2, last_norm=end, last_bias=False)
        self.momentum_encoder = MomentumEncoder(backbone=backbone, projector=self.projector)

    @classmethod
    def recipe(cls, options: MoCoV3Options, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """BYOL's views with bilinear crops, of 20% or more for a ResNet, of 8% for a ViT; for small images similar ones
        without blur."""
        if image_size <= 64:
            return {"preset": "cifar_asym"}
        scale = {} if spec.patch_size is not None else {"crop_scale": [0.2, 1.0]}
        return {"preset": "byol", **scale, "interpolation": "bilinear"}

    @classmethod
    def defaults(cls, options: MoCoV3Options, spec: BackboneSpec) -> DefaultSections:
        """For a ViT AdamW, fixed positions and Xavier's initial weights, for ViT-S 12 heads; else LARS (the authors'
        CONFIG.md and vits.py)."""
        if spec.patch_size is not None:
            adamw = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.1, "exclude": [], "scale_lr": "batch/256"}
            heads = {"heads": 12} if spec.feature_dim == 384 else {}  # ViT-S; others have their usual number
            return {
                "optimizer": adamw,
                "schedule": {"name": "cosine", "warmup_epochs": 40},
                "backbone": {"init": "xavier", "positions": "sincos", **heads},
            }
        return {
            "optimizer": {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"},
            "schedule": {"name": "cosine", "warmup_epochs": 10},
        }

    def chance_loss(self, images: int) -> float:
        return 4 * self.temperature * math.log(images)

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, how well keys are found among the batch's, and the first view's features. Raises UserError
        if there are not two global views or more, the first ones."""
        x, global_views = global_and_local(batch, "moco_v3")
        together = self.options.views_together
        if together:
            h = each_view(self.backbone, x)  # N×D each
            q = each_view(self._predict, h)  # N×E each
        else:  # one global view at a time; small views of one size together, as in every multi-crop
            h = each_view(self.backbone, x[:global_views], together)
            q = [self._predict(features) for features in h]
            q += each_view(lambda images: self._predict(self.backbone(images).pooled), x[global_views:])
        k = each_view(self.momentum_encoder, x[:global_views], together)  # N×E each, without gradient
        loss, metrics = mean_over([
            batch_info_nce_and_metrics(q[i], k[j], self.temperature)
            for i in range(len(x)) for j in range(global_views) if i != j
        ])  # fmt: skip
        return Step(2 * (2 * self.temperature * loss), metrics, features=h[0].detach())

    def _predict(self, features: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(features))
        return prediction

    def schedules(self) -> dict[str, StepFunction]:
        """The EMA momentum m(t); the update after step t, which is that before step t + 1, is by m(t + 1)."""
        return {"momentum": self.options.momentum_schedule(self.run.total_steps)}

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        # The paper updates before the next keys are computed, with the same weights: the same numbers.
        self.momentum_encoder.follow(
            backbone=self.backbone, projector=self.projector, value=self.options.momentum_at(progress)
        )
