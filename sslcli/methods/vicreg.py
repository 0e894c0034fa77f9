"""VICReg: two views' embeddings agree, while every dimension keeps its variance and tells something of its own.

Bardes, Ponce, LeCun, *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning*, ICLR 2022,
https://arxiv.org/abs/2105.04906.
"""

from __future__ import annotations

from pydantic import Field

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import vicreg_terms
from sslcli.modules.heads import Norm, mlp
from sslcli.modules.multicrop import ViewsTogetherOptions, each_view, global_count
from sslcli.modules.pairs import prediction_cosines, view_pairs


class VICRegProjectorOptions(Options):
    """The projector (the paper's expander): linear–BN–ReLU, then a plain linear layer without bias."""

    layers: int = Field(default=3, ge=1)
    """Linear layers."""
    hidden_dim: int = Field(default=8192, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=8192, ge=1)
    """Dimensions of the embedding."""
    norm: Norm = "batch"
    """Batch norm behind each hidden layer, or none."""


class VICRegOptions(ViewsTogetherOptions):
    """Options of VICReg."""

    projector: VICRegProjectorOptions = VICRegProjectorOptions()
    """The head behind the backbone."""
    invariance: float = Field(default=25.0, ge=0)
    """λ, the weight of the squared distance of two views."""
    variance: float = Field(default=25.0, ge=0)
    """μ, the weight of the hinge that keeps each dimension's standard deviation at 1 or more."""
    covariance: float = Field(default=1.0, ge=0)
    """ν, the weight of the squared covariances of different dimensions."""
    epsilon: float = Field(default=1e-4, gt=0)
    """ε, added to the variance inside the root."""


class VICReg(Method):
    """λ·MSE(z₁, z₂) + μ·½[v(z₁) + v(z₂)] + ν·[c(z₁) + c(z₂)], statistics over the whole batch.

    With more views it is the mean over each two views of which one at least is global (of the first one's size).
    """

    Options = VICRegOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2105.04906"
    defaults = {
        "optimizer": {"name": "lars", "lr": 0.2, "weight_decay": 1e-6, "scale_lr": "batch/256"},
        "schedule": {"name": "cosine", "warmup_epochs": 10, "final": 0.001},
    }

    options: VICRegOptions

    def __init__(self, backbone: Backbone, options: VICRegOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        head = options.projector
        self.projector = mlp(
            backbone.spec.feature_dim, head.hidden_dim, head.output_dim, head.layers, norm=head.norm, last_bias=False
        )

    @classmethod
    def recipe(cls, options: VICRegOptions, image_size: int) -> RecipeSection:
        """BYOL's two unlike views, as in the paper; for small images the like without blur."""
        return {"preset": "cifar_asym" if image_size <= 64 else "byol"}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, its three terms, the mean cosines of pairs, and the first view's features.

        Raises:
            UserError: if there are not two views of one size, or the largest don't come first.
        """
        options = self.options
        pairs = view_pairs(len(batch.views), global_count(batch, "vicreg"))
        together, images = self.options.views_together, [view.image for view in batch.views]
        h = each_view(lambda x: self.backbone(x).pooled, images, together=together)  # N×D each
        z = each_view(self.projector, h, together=together)  # N×E each
        invariance, variance, covariance = vicreg_terms(z, pairs, options.epsilon)
        loss = options.invariance * invariance + options.variance * variance + options.covariance * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        metrics = {name: term.detach() for name, term in terms.items()}
        cosines = prediction_cosines(*[(z[a], z[b]) for a, b in pairs])
        return Step(loss=loss, metrics={**metrics, **cosines}, features=h[0].detach())
