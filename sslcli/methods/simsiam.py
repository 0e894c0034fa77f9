"""SimSiam: two views, a predictor on one side and a stop-gradient on the other, no negatives and no momentum encoder.

Chen & He, *Exploring Simple Siamese Representation Learning*, https://arxiv.org/abs/2011.10566.
"""

from __future__ import annotations

import torch
from pydantic import Field

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, ParameterGroup, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import mean_cosines, negative_cosine
from sslcli.modules import ViewsTogetherOptions, build_head, each_view, global_and_local, mlp
from sslcli.modules.heads import LastNorm, Norm


class SimSiamProjectorOptions(Options):
    """The projector: linear–BN–ReLU, then linear–BN without scale and shift."""

    layers: int = Field(default=3, ge=1, le=100)
    """Linear layers; the paper uses 3 on ImageNet and 2 on CIFAR-10."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=2048, ge=1)
    """Dimensions of the projection, and of the prediction."""
    norm: Norm = "batch"
    """Batch norm after each hidden layer, or none."""
    last_norm: LastNorm = "no_affine"
    """Batch norm after the last layer: complete, without shift, without scale and shift as in the paper, or none."""


class SimSiamPredictorOptions(Options):
    """The predictor: linear–BN–ReLU, then a plain linear layer with bias."""

    hidden_dim: int = Field(default=512, ge=1)
    """Width of the hidden layer; a bottleneck, a quarter of the projection in the paper."""
    norm: Norm = "batch"
    """Batch norm after the hidden layer, or none."""
    last_norm: LastNorm = "none"
    """Batch norm after the last layer; with it training is unstable (table 3 of the paper)."""
    constant_lr: bool = True
    """Keep the predictor's learning rate at its base value while the rest follows the schedule."""


class SimSiamOptions(ViewsTogetherOptions):
    """Options of SimSiam."""

    projector: SimSiamProjectorOptions = SimSiamProjectorOptions()
    """The head after the backbone."""
    predictor: SimSiamPredictorOptions = SimSiamPredictorOptions()
    """The head after the projector, on the side that gets the gradient."""


class SimSiam(Method):
    """SimSiam: predicts the other view's projection, with a stopped gradient in place of negatives.
    With z = projector(backbone(x)) and p = predictor(z) the loss is the mean of −cos(p₁, sg z₂) and −cos(p₂, sg z₁).

    With more views it is the mean of −cos(p, sg z) over every view's p and every other *global* view's z (those of the
    first one's size).
    """

    Options = SimSiamOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2011.10566"
    year = 2020

    options: SimSiamOptions

    def __init__(self, backbone: Backbone, options: SimSiamOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.projector = build_head(options.projector, backbone.spec.feature_dim)
        head, dim = options.predictor, options.projector.output_dim
        self.predictor = mlp(dim, head.hidden_dim, dim, layers=2, norm=head.norm, last_norm=head.last_norm)

    @classmethod
    def recipe(cls, options: SimSiamOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """MoCo v2's views; without blur for small images, as the paper has it on CIFAR-10 (appendix D)."""
        return {"preset": "moco_v2", "blur": 0.0} if image_size <= 64 else {"preset": "moco_v2"}

    @classmethod
    def defaults(cls, options: SimSiamOptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 1e-4, "exclude": [], "scale_lr": "batch/256"},
            "schedule": {"name": "cosine"},
        }

    @classmethod
    def minimum_images(cls, options: SimSiamOptions) -> int:
        return 1  # batch norm, if there is any, says what it needs

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the mean cosines of pairs, and the first view's features. Raises UserError if there are not
        two global views or more, the first ones."""
        x, global_views = global_and_local(batch, "simsiam")
        together = self.options.views_together
        h = each_view(self.backbone, x, together)  # N×D each
        z = each_view(self.projector, h, together)  # N×E each
        p = each_view(self.predictor, z, together)  # N×E each
        pairs = [(p[i], z[j]) for i in range(len(x)) for j in range(global_views) if i != j]
        loss = torch.stack([negative_cosine(*pair) for pair in pairs]).mean()  # without gradient to z
        return Step(loss, mean_cosines(pairs), features=h[0].detach())

    def parameter_groups(self) -> list[ParameterGroup]:
        """The predictor is a group of its own: its learning rate does not decay (section 4.2)."""
        (main,) = super().parameter_groups()
        predictor = {n: main.parameters.pop(n) for n in [*main.parameters] if n.startswith("predictor.")}
        constant = self.options.predictor.constant_lr
        return [main, ParameterGroup(predictor, name="predictor", constant_lr=constant)]
