"""MoCo v3: no queue; the negatives are the other keys of a large batch, and a predictor stands behind the projector.

Chen, Xie, He, *An Empirical Study of Training Self-Supervised Vision Transformers*, https://arxiv.org/abs/2104.02057.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import rank
from sslcli.losses.info_nce import batch_contrast_loss, batch_logits, contrast_metrics
from sslcli.modules.heads import mlp
from sslcli.modules.momentum import MomentumEncoder
from sslcli.modules.multicrop import ViewsTogetherOptions, by_resolution, each_view, global_count


class MoCoV3ProjectorOptions(Options):
    """The projector: linear–BN–ReLU, and at the end linear–BN without scale and shift; no biases."""

    layers: int | None = Field(default=None, ge=1)
    """Linear layers; null: 3 behind a ViT, else 2."""
    hidden_dim: int = Field(default=4096, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=256, ge=1)
    """Dimensions of the projection, and of the prediction."""


class MoCoV3PredictorOptions(Options):
    """The predictor: linear–BN–ReLU–linear, without biases."""

    hidden_dim: int = Field(default=4096, ge=1)
    """Width of the hidden layer."""
    last_norm: bool | None = None
    """End it with a batch norm without scale and shift; null: behind a ViT only."""


class MoCoV3Options(ViewsTogetherOptions):
    """Options of MoCo v3."""

    temperature: float | None = Field(default=None, gt=0)
    """Divides the cosines in the loss; null: 0.2 for a ViT, else 1."""
    projector: MoCoV3ProjectorOptions = MoCoV3ProjectorOptions()
    """The head behind the backbone, which the momentum encoder has too."""
    predictor: MoCoV3PredictorOptions = MoCoV3PredictorOptions()
    """The head behind the projector, on the online side alone."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """How slowly the momentum encoder follows at first; the paper has 0.996 for 1000 epochs."""
    final_momentum: float = Field(default=1.0, ge=0, le=1)
    """Where a cosine takes the momentum over the run."""
    freeze_patch_projection: bool | None = None
    """Keep a ViT's patch projection as it was at random; null: wherever there is one."""


class MoCoV3(Method):
    """2τ·CE of each query against the keys of the other view from all processes, summed over both directions.

    With more views, every global view (as large as the first) has a key, and every view is a query against the keys
    of all global views but itself. The loss is twice the mean over these pairs: with two views, the paper's sum.
    """

    Options = MoCoV3Options
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2104.02057"
    defaults = {
        "optimizer": {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"},
        "schedule": {"name": "cosine", "warmup_epochs": 10},
    }

    options: MoCoV3Options

    def __init__(self, backbone: Backbone, options: MoCoV3Options, run: RunInfo) -> None:
        """Raises UserError if a patch projection is to be frozen and the backbone has none."""
        super().__init__(backbone, options, run)
        patches = getattr(backbone, "patch_projection", None)
        vit = isinstance(patches, nn.Module)
        if options.freeze_patch_projection and not vit:
            raise UserError(
                "method.freeze_patch_projection: this backbone has no patch projection: leave it null, or take a ViT"
            )
        if isinstance(patches, nn.Module) and options.freeze_patch_projection is not False:
            patches.requires_grad_(False)
        self.temperature = options.temperature or (0.2 if vit else 1.0)
        head, predictor = options.projector, options.predictor
        self.projector = mlp(
            backbone.spec.feature_dim,
            head.hidden_dim,
            head.output_dim,
            head.layers or (3 if vit else 2),
            last_norm="no_affine",
        )
        self.predictor = mlp(
            head.output_dim,
            predictor.hidden_dim,
            head.output_dim,
            layers=2,
            last_norm="no_affine" if (vit if predictor.last_norm is None else predictor.last_norm) else "none",
            last_bias=False,
        )
        self.momentum_encoder = MomentumEncoder(backbone, self.projector)

    @classmethod
    def recipe(cls, options: MoCoV3Options, image_size: int) -> RecipeSection:
        """The ResNets' views: BYOL's with crops from 20 % and bilinear; ViTs have `crop_scale` from 8 %.

        For small images the like without blur.
        """
        if image_size <= 64:
            return {"preset": "cifar_asym"}
        return {"preset": "byol", "crop_scale": [0.2, 1.0], "interpolation": "bilinear"}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, how well keys are found among the batch's, and the first view's features.

        Raises:
            UserError: if the first two views are not the largest.
        """
        whole = global_count(batch, "moco_v3")
        images = [view.image for view in batch.views]
        features, queries = self._queries(images, whole)
        together = self.options.views_together
        keys = each_view(self.momentum_encoder, images[:whole], together=together)  # N×E each, without gradient
        losses, found = [], []
        for i, query in enumerate(queries):
            for j, key in enumerate(keys):
                if i != j:
                    logits = batch_logits(query, key, self.temperature)
                    losses.append(batch_contrast_loss(logits))
                    positive = logits.diagonal(len(logits) * rank())
                    found.append(contrast_metrics(positive, logits, self.temperature, among=True))
        loss = 2 * (2 * self.temperature * torch.stack(losses).mean())
        metrics = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        return Step(loss, metrics, features=features.detach())

    def _queries(self, images: list[Tensor], whole: int) -> tuple[Tensor, list[Tensor]]:
        """The first view's features (N, D), and each view's prediction (N, E)."""
        if self.options.views_together:
            h = by_resolution(self._pooled, images)
            return h[0], by_resolution(self._predict, h)
        h = [self._pooled(x) for x in images[:whole]]  # one view at a time, so that batch norm sees one at a time
        queries = [self._predict(features) for features in h]
        return h[0], queries + by_resolution(lambda x: self._predict(self._pooled(x)), images[whole:])

    def _pooled(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.backbone(images).pooled
        return pooled

    def _predict(self, features: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(features))
        return prediction

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        # The paper updates before the next keys are computed, with the same weights: the same numbers.
        start, final, total = self.options.momentum, self.options.final_momentum, self.run.total_steps
        self.momentum_encoder.follow(self.backbone, self.projector, start, final, progress.step, total)
