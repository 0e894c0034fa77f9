"""Alignment and uniformity: embeddings of two views of an image are close, those of all images spread over the sphere.

Wang & Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere*,
ICML 2020, arXiv:2005.10242.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather
from sslcli.modules.heads import ProjectorOptions, mlp
from sslcli.modules.pairs import two_views


def alignment(z1: Tensor, z2: Tensor, alpha: float) -> Tensor:
    """Returns E‖z₁ − z₂‖^α over the positive pairs, 0-dim.

    Args:
        z1: (N, D) unit vectors.
        z2: (N, D) unit vectors, in the same order.
        alpha: α > 0.
    """
    # The power of the squared distance, since the square root has no gradient at 0.
    return (z1 - z2).square().sum(dim=1).clamp_min(1e-12).pow(alpha / 2).mean()


def uniformity(z: Tensor, t: float) -> Tensor:
    """Returns log E exp(−t·‖zᵢ − zⱼ‖²) over all pairs i ≠ j, 0-dim; −4t at least.

    On several processes the pairs are those of all embeddings, gathered with gradient. Each process returns the whole
    value, and DDP's mean of their gradients is the gradient of one process with the joined batch.

    Args:
        z: (N, D) unit vectors, at least two over all processes.
        t: t > 0.
    """
    everyone = all_gather(z, gradient=True)  # M×D
    exponent = -t * (2 - 2 * everyone @ everyone.T)  # M×M; ‖a − b‖² = 2 − 2·a·b
    exponent.fill_diagonal_(-torch.inf)  # no vector is paired with itself
    return torch.logsumexp(exponent.flatten(), dim=0) - math.log(len(everyone) * (len(everyone) - 1))


class AlignUniformOptions(MethodOptions):
    """Options of alignment and uniformity."""

    alpha: float = Field(default=2.0, gt=0)
    """Power of the distance between the two views of an image."""
    t: float = Field(default=2.0, gt=0)
    """Sharpness of the kernel exp(−t·distance²): a large t makes only close embeddings repel."""
    align_weight: float = Field(default=1.0, ge=0)
    """Weight of the alignment in the loss."""
    uniform_weight: float = Field(default=1.0, ge=0)
    """Weight of the uniformity in the loss."""
    projector: ProjectorOptions = ProjectorOptions()
    """The head between the features and the loss."""


class AlignUniform(Method):
    """align_weight·alignment + uniform_weight·uniformity of the projections of two views."""

    Options = AlignUniformOptions
    batch_coupled = True
    view_count = 2
    paper = "https://arxiv.org/abs/2005.10242"
    year = 2020

    options: AlignUniformOptions

    def __init__(self, backbone: Backbone, options: AlignUniformOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        head, features = options.projector, backbone.spec.feature_dim
        self.projector = mlp(features, head.hidden_dim or features, head.output_dim, head.layers, norm=head.norm)

    @classmethod
    def recipe(cls, options: AlignUniformOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """The paper's views on STL-10: crops, flips, strong color jitter, grayscale, no blur."""
        jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4, "p": 1.0}
        return {"preset": "simclr", "interpolation": "bilinear", "jitter": jitter, "blur": 0.0}

    @classmethod
    def defaults(cls, options: AlignUniformOptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {"name": "sgd", "lr": 0.12, "momentum": 0.9, "weight_decay": 1e-4, "scale_lr": "batch/256"},
            "schedule": {"name": "step", "milestones": [0.775, 0.85, 0.925], "factor": 0.1},
        }

    def forward(self, batch: Batch) -> Step:
        x1, x2 = two_views(batch, "align_uniform")
        features = self.backbone(torch.cat((x1, x2))).pooled  # 2N×D
        projections = self.projector(features)
        with torch.autocast(projections.device.type, enabled=False):
            z1, z2 = F.normalize(projections.float(), dim=1).chunk(2)  # N×E each
            align = alignment(z1, z2, self.options.alpha)
            uniform = (uniformity(z1, self.options.t) + uniformity(z2, self.options.t)) / 2
            loss = self.options.align_weight * align + self.options.uniform_weight * uniform
        metrics = {"alignment": align.detach(), "uniformity": uniform.detach()}
        return Step(loss, metrics, features=features[: len(x1)].detach())
