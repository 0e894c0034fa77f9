"""Barlow Twins: each dimension of one view's embeddings correlates with the same one of the other view's, and no other.

Zbontar, Jing, Misra, LeCun, Deny, *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*, ICML 2021,
https://arxiv.org/abs/2103.03230.
"""

from __future__ import annotations

from pydantic import Field

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.losses import barlow_twins_and_metrics, mean_cosines
from sslcli.modules import ViewsTogetherOptions, build_head, each_view, global_and_local
from sslcli.modules.heads import WideProjectorOptions


class BarlowTwinsOptions(ViewsTogetherOptions):
    """Options of Barlow Twins."""

    projector: WideProjectorOptions = WideProjectorOptions()
    """The head after the backbone."""
    lambda_: float = Field(default=0.0051, ge=0)
    """λ, the weight of the off-diagonal elements of the cross-correlation matrix."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the whole loss, which grows with the dimension; matters for optimizers that don't normalize."""


class BarlowTwins(Method):
    """Barlow Twins: each dimension of the embeddings is equal in both views and uncorrelated with the others.
    The loss is Σᵢ (1 − Cᵢᵢ)² + λ·Σ_{i≠j} Cᵢⱼ² of the cross-correlation C of two views' embeddings over the whole batch.

    With more views it is the mean over each two views of which one at least is global (of the first one's size).
    """

    Options = BarlowTwinsOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2103.03230"
    year = 2021

    options: BarlowTwinsOptions

    def __init__(self, backbone: Backbone, options: BarlowTwinsOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.projector = build_head(options.projector, backbone.spec.feature_dim, last_bias=False)

    @classmethod
    def recipe(cls, options: BarlowTwinsOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """BYOL's two different views, as in the paper; for small images similar ones without blur."""
        return {"preset": "cifar_asym" if image_size <= 64 else "byol"}

    @classmethod
    def defaults(cls, options: BarlowTwinsOptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {
                "name": "lars",
                "lr": 0.2,
                "lr_excluded": 0.0048,
                "weight_decay": 1e-6,
                "scale_lr": "batch/256",
            },
            "schedule": {"name": "cosine", "warmup_epochs": 10, "final": 0.001},
        }

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, its two terms, the mean cosines of pairs, and the first view's features. Raises UserError
        if there are not two global views or more, the first ones."""
        x, global_views = global_and_local(batch, "barlow_twins")
        together = self.options.views_together
        h = each_view(self.backbone, x, together)  # N×D each
        z = each_view(self.projector, h, together)  # N×E each
        pairs = [(i, j) for i in range(global_views) for j in range(i + 1, len(x))]
        loss, metrics = barlow_twins_and_metrics(z, pairs, self.options.lambda_)
        metrics |= mean_cosines([(z[i], z[j]) for i, j in pairs])
        return Step(self.options.scale * loss, metrics, features=h[0].detach())
