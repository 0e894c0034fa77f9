"""Barlow Twins: the dimensions of two views' embeddings correlate each with its twin, and with no other.

Zbontar, Jing, Misra, LeCun, Deny, *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*, ICML 2021,
https://arxiv.org/abs/2103.03230.
"""

from __future__ import annotations

from pydantic import Field

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import barlow_twins_terms
from sslcli.modules.heads import Norm, mlp
from sslcli.modules.multicrop import ViewsTogetherOptions, each_view, global_count
from sslcli.modules.pairs import prediction_cosines, view_pairs


class BarlowTwinsProjectorOptions(Options):
    """The projector: linear–BN–ReLU, then a plain linear layer; no layer has a bias, but a hidden one without norm."""

    layers: int = Field(default=3, ge=1)
    """Linear layers."""
    hidden_dim: int = Field(default=8192, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=8192, ge=1)
    """Dimensions of the embedding; the loss gains from many."""
    norm: Norm = "batch"
    """Batch norm behind each hidden layer, or none."""


class BarlowTwinsOptions(ViewsTogetherOptions):
    """Options of Barlow Twins."""

    projector: BarlowTwinsProjectorOptions = BarlowTwinsProjectorOptions()
    """The head behind the backbone."""
    lambda_: float = Field(default=0.0051, ge=0)
    """λ, the weight of the off-diagonal elements of the cross-correlation matrix."""
    scale: float = Field(default=1.0, gt=0)
    """Multiplies the whole loss, which grows with the dimensions; matters to optimizers that don't normalize."""


class BarlowTwins(Method):
    """Σᵢ (1 − Cᵢᵢ)² + λ·Σ_{i≠j} Cᵢⱼ² of the cross-correlation C of two views' embeddings over the whole batch.

    With more views it is the mean over each two views of which one at least is global (of the first one's size).
    """

    Options = BarlowTwinsOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2103.03230"
    defaults = {
        "optimizer": {
            "name": "lars",
            "lr": 0.2,
            "lr_excluded": 0.0048,
            "weight_decay": 1e-6,
            "scale_lr": "batch/256",
        },
        "schedule": {"name": "cosine", "warmup_epochs": 10, "final": 0.001},
    }

    options: BarlowTwinsOptions

    def __init__(self, backbone: Backbone, options: BarlowTwinsOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        head = options.projector
        self.projector = mlp(
            backbone.spec.feature_dim, head.hidden_dim, head.output_dim, head.layers, norm=head.norm, last_bias=False
        )

    @classmethod
    def recipe(cls, options: BarlowTwinsOptions, image_size: int) -> RecipeSection:
        """BYOL's two unlike views, as in the paper; for small images the like without blur."""
        return {"preset": "cifar_asym" if image_size <= 64 else "byol"}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, its two terms, the mean cosines of pairs, and the first view's features.

        Raises:
            UserError: if there are not two views of one size, or the largest don't come first.
        """
        pairs = view_pairs(len(batch.views), global_count(batch, "barlow_twins"))
        together, images = self.options.views_together, [view.image for view in batch.views]
        h = each_view(lambda x: self.backbone(x).pooled, images, together=together)  # N×D each
        z = each_view(self.projector, h, together=together)  # N×E each
        on_diagonal, off_diagonal = barlow_twins_terms(z, pairs)
        loss = self.options.scale * (on_diagonal + self.options.lambda_ * off_diagonal)
        metrics = {"on_diagonal": on_diagonal.detach(), "off_diagonal": off_diagonal.detach()}
        cosines = prediction_cosines(*[(z[a], z[b]) for a, b in pairs])
        return Step(loss=loss, metrics={**metrics, **cosines}, features=h[0].detach())
