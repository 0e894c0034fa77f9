"""VICReg: two views' embeddings agree, while dimensions keep their variance and stay uncorrelated.

Bardes, Ponce, LeCun, *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning*, ICLR 2022,
https://arxiv.org/abs/2105.04906.
"""

from __future__ import annotations

from pydantic import Field

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.losses import mean_cosines, vicreg_and_metrics
from sslcli.modules import ViewsTogetherOptions, build_head, each_view, global_and_local
from sslcli.modules.heads import WideProjectorOptions


class VICRegWeights(MethodOptions):
    """The weights of VICReg's three terms."""

    invariance: float = Field(default=25.0, ge=0)
    """λ, VICReg's weight of the squared distance of two views."""
    variance: float = Field(default=25.0, ge=0)
    """μ, VICReg's weight of the hinge that keeps each dimension's standard deviation at 1 or more."""
    covariance: float = Field(default=1.0, ge=0)
    """ν, VICReg's weight of the squared covariances of different dimensions."""


class VICRegOptions(ViewsTogetherOptions, VICRegWeights):
    """Options of VICReg."""

    projector: WideProjectorOptions = WideProjectorOptions()
    """The head after the backbone, which the paper calls the expander."""
    epsilon: float = Field(default=1e-4, gt=0)
    """ε, added to the variance before its square root."""


class VICReg(Method):
    """VICReg: equal embeddings of two views, whose dimensions keep their variance and stay uncorrelated.
    The loss is λ·MSE(z₁, z₂) + μ·½[v(z₁) + v(z₂)] + ν·[c(z₁) + c(z₂)], statistics over the whole batch.

    With more views it is the mean over each two views of which one at least is global (of the first one's size).
    """

    Options = VICRegOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2105.04906"
    year = 2021

    options: VICRegOptions

    def __init__(self, backbone: Backbone, options: VICRegOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.projector = build_head(options.projector, backbone.spec.feature_dim, last_bias=False)

    @classmethod
    def recipe(cls, options: VICRegOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """BYOL's two different views, as in the paper; for small images similar ones without blur."""
        return {"preset": "cifar_asym" if image_size <= 64 else "byol"}

    @classmethod
    def defaults(cls, options: VICRegOptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {"name": "lars", "lr": 0.2, "weight_decay": 1e-6, "scale_lr": "batch/256"},
            "schedule": {"name": "cosine", "warmup_epochs": 10, "final": 0.001},
        }

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, its three terms, the mean cosines of pairs, and the first view's features. Raises UserError
        if there are not two global views or more, the first ones."""
        options, together = self.options, self.options.views_together
        x, global_views = global_and_local(batch, "vicreg")
        h = each_view(self.backbone, x, together)  # N×D each
        z = each_view(self.projector, h, together)  # N×E each
        pairs = [(i, j) for i in range(global_views) for j in range(i + 1, len(x))]
        loss, metrics = vicreg_and_metrics(
            z, pairs, options.invariance, options.variance, options.covariance, options.epsilon
        )
        return Step(loss, {**metrics, **mean_cosines([(z[i], z[j]) for i, j in pairs])}, features=h[0].detach())
