"""NNCLR: a view must find, by its prediction, the nearest neighbor of the other view among earlier embeddings.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman, *With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning
of Visual Representations*, ICCV 2021, https://arxiv.org/abs/2104.14548.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, Progress, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather
from sslcli.losses import batch_info_nce_and_metrics, mean_over, unit_rows
from sslcli.modules import Queue, ViewsTogetherOptions, build_head, each_view, global_and_local


class NNCLRProjectorOptions(Options):
    """The projector: linear–BN–ReLU, then linear–BN."""

    layers: int = Field(default=3, ge=1, le=100)
    """Linear layers."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=256, ge=1)
    """Dimension of the embeddings, which the queue holds, and of the predictions."""


class NNCLRPredictorOptions(Options):
    """The predictor: linear–BN–ReLU, then a plain linear layer with bias."""

    hidden_dim: int = Field(default=4096, ge=1)
    """Width of the hidden layer."""


class NNCLROptions(ViewsTogetherOptions):
    """Options of NNCLR."""

    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosines in the loss."""
    queue_size: int = Field(default=98304, ge=1)
    """Earlier embeddings among which neighbors are looked for, which the paper calls the support set."""
    projector: NNCLRProjectorOptions = NNCLRProjectorOptions()
    """The head after the backbone."""
    predictor: NNCLRPredictorOptions = NNCLRPredictorOptions()
    """The head after the projector, of the view that is compared with a neighbor."""


class NNCLR(Method):
    """NNCLR: contrasts a view with the nearest neighbor of the other view, from a queue of earlier embeddings.
    With z = projector(backbone(x)) and p = predictor(z) the loss is that of each image's nn(z₁) finding p₂ among the
    p₂ of all images, and of nn(z₂) finding p₁; the mean of both.

    With more views it is the mean over nn(z) of every global view (of the first one's size) and p of every other view.
    After the step the first view's z enter the queue, as in the paper's algorithm.
    """

    Options = NNCLROptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2104.14548"
    year = 2021
    needs = ("queue",)

    options: NNCLROptions

    def __init__(self, backbone: Backbone, options: NNCLROptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        dim = options.projector.output_dim
        self.projector = build_head(options.projector, backbone.spec.feature_dim, last_norm="full")
        self.predictor = build_head(options.predictor, dim, output_dim=dim, layers=2)
        self.queue = Queue(options.queue_size, dim, labeled=True)

    @classmethod
    def recipe(cls, options: NNCLROptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        return {"preset": "simclr"}

    @classmethod
    def defaults(cls, options: NNCLROptions, spec: BackboneSpec) -> DefaultSections:
        """The paper's for ResNets. It has no ViT: for these AdamW and warm-up of MoCo v3, the nearest method that has
        published them."""
        if spec.patch_size is not None:
            return {
                "optimizer": {
                    "name": "adamw",
                    "lr": 1.5e-4,
                    "weight_decay": 0.1,
                    "exclude": [],
                    "scale_lr": "batch/256",
                },
                "schedule": {"name": "cosine", "warmup_epochs": 40},
            }
        return {
            "optimizer": {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"},
            "schedule": {"name": "cosine", "warmup_epochs": 10},
        }

    def chance_loss(self, images: int) -> float:
        return math.log(images)

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, how well neighbors find their predictions among the batch's, the mean cosine of the first
        view's embeddings and their neighbors (`neighbor_cos`), with labels how many neighbors have the image's own
        (`neighbor_same_label`), and the first view's features. Raises UserError if there are not two global views or
        more, the first ones."""
        x, global_views = global_and_local(batch, "nnclr")
        together = self.options.views_together
        h = each_view(self.backbone, x, together)  # N×D each
        z = each_view(self.projector, h, together)  # N×E each
        p = each_view(self.predictor, z, together)  # N×E each
        u = [unit_rows(each.detach()) for each in z[:global_views]]
        nearest = [self.queue.nearest(each) for each in u]  # N each
        neighbor = [self.queue.keys[index] for index in nearest]  # N×E each, without gradient
        loss, metrics = mean_over([
            batch_info_nce_and_metrics(neighbor[i], p[j], self.options.temperature, keys_have_gradient=True)
            for i in range(global_views) for j in range(len(x)) if i != j
        ])  # fmt: skip
        metrics["neighbor_cos"] = (u[0] * neighbor[0]).sum(dim=1).mean()
        carry = {"embeddings": u[0]}
        if batch.labels is not None:
            metrics["neighbor_same_label"] = self._same_label(nearest[0], batch.labels)
            carry["labels"] = batch.labels
        return Step(loss, metrics, features=h[0].detach(), carry=carry)

    def _same_label(self, index: Tensor, labels: Tensor) -> Tensor:
        """The share of neighbors with the image's label; what is in the queue at random has none."""
        assert self.queue.labels is not None
        return (self.queue.labels[index] == labels).to(torch.float32).mean()

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        for each in carry:
            labels = each.get("labels")
            self.queue.push(all_gather(each["embeddings"]), None if labels is None else all_gather(labels))
