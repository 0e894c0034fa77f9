"""LeJEPA: all views of an image have one embedding, and the embeddings of all images are an isotropic Gaussian.

Balestriero & LeCun, *LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics*,
https://arxiv.org/abs/2511.08544, algorithms 1 and 2.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.losses import gaussian_directions, mean_cosines, sigreg
from sslcli.modules import build_head, each_view, global_and_local


class LeJEPAProjectorOptions(Options):
    """The projector: linear–BN–ReLU, then a plain linear layer with bias."""

    layers: int = Field(default=3, ge=1, le=100)
    """Linear layers."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings; the authors' code has 16 to 1024."""


class LeJEPAOptions(MethodOptions):
    """Options of LeJEPA."""

    lambda_: float = Field(default=0.05, gt=0, lt=1)
    """λ, the weight of SIGReg; that of the prediction is 1 − λ."""
    directions: int = Field(default=1024, ge=1, le=1_000_000)
    """Random directions along which the embeddings are tested, new ones at every step."""
    integration_limit: float = Field(default=5.0, ge=1, le=10)
    """The test's integral is over [−limit, limit]: 5 in the paper, 3 in its code."""
    integration_points: int = Field(default=17, ge=2, le=1001)
    """Points of that integral, both ends included: 17 in the paper, in effect 33 in its code."""
    projector: LeJEPAProjectorOptions = LeJEPAProjectorOptions()
    """The head after the backbone."""


class LeJEPA(Method):
    """LeJEPA: predicts every view's embedding from the global views', which a test keeps Gaussian; no teacher.
    With z = projector(backbone(x)) the loss is (1 − λ)·mean (z_v − μ)² + λ·SIGReg(z), μ the mean of an image's global
    views.

    There is no predictor, no teacher and no stopped gradient: SIGReg alone prevents collapse. Its test is of the batch
    of all processes; with accumulation each micro-batch has its own.
    """

    Options = LeJEPAOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2511.08544"
    year = 2025

    options: LeJEPAOptions

    def __init__(self, backbone: Backbone, options: LeJEPAOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.projector = build_head(options.projector, backbone.spec.feature_dim)

    @classmethod
    def recipe(cls, options: LeJEPAOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """The multi-crop of the authors' README for a ViT; for other networks, and for images up to 64 pixels, the four
        crops of one size of their minimal example, with the README's jitter, small ones without blur."""
        if spec.patch_size is not None and image_size > 64:
            return {"preset": "lejepa", "local_multiple": spec.size_multiple}
        alike = {"preset": "lejepa", "local_count": 0, "global_count": 4, "global_scale": [0.08, 1.0]}
        return {**alike, "blur": 0.0} if image_size <= 64 else alike

    @classmethod
    def defaults(cls, options: LeJEPAOptions, spec: BackboneSpec) -> DefaultSections:
        """The README of the authors' code; warm-up by its minimal example. All parameters decay, as there."""
        vit = spec.patch_size is not None
        return {
            "optimizer": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.05 if vit else 5e-4, "exclude": []},
            "schedule": {"name": "cosine", "warmup_epochs": 1, "warmup_start": 0.01, "final": 0.001},
            "backbone": {"drop_path": 0.1} if vit else {},
        }

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, its two terms (`prediction`, `sigreg`: 1.06 for Gaussian embeddings), the mean cosines of
        the first two views' pairs, and the first view's features. Raises UserError if there are not two global views
        or more, the first ones."""
        x, global_views = global_and_local(batch, "lejepa")
        h = each_view(self.backbone, x)  # N×D each
        z = torch.stack(each_view(self.projector, h))  # V×N×E; the projector's batch norms see all views
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            prediction = (z - z[:global_views].mean(dim=0)).square().mean()
        test = sigreg(z, self._directions(batch, z), self.options.integration_limit, self.options.integration_points)
        loss = (1 - self.options.lambda_) * prediction + self.options.lambda_ * test
        terms = {"prediction": prediction.detach(), "sigreg": test.detach()}
        return Step(loss, {**terms, **mean_cosines([(z[0], z[1])])}, features=h[0].detach())

    def _directions(self, batch: Batch, z: Tensor) -> Tensor:
        """Random directions (E, K), the same on all processes and in all micro-batches of a step."""
        return gaussian_directions(batch.shared_uniform(z.shape[-1] * self.options.directions), z.shape[-1])
