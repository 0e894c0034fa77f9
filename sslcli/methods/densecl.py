"""DenseCL: MoCo v2 with a second contrast, of the places of the feature map, for detection and segmentation.

Wang, Zhang, Shen, Kong, Li, *Dense Contrastive Learning for Self-Supervised Visual Pre-Training*,
https://arxiv.org/abs/2011.09157.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.method import Batch, DefaultSections, Method, Progress, RunInfo, Step, StepFunction
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather
from sslcli.losses import queue_info_nce_and_metrics, unit_rows
from sslcli.losses.rows import in_full_precision
from sslcli.modules import MomentumEncoder, Queue, build_head, two_views
from sslcli.modules.maps import map_of, map_width, resize_map
from sslcli.modules.shuffle import encode_shuffled

from ._moco import SGD, KeyOptions
from .moco_v2 import MoCoV2ProjectorOptions


class DenseCLOptions(KeyOptions):
    """Options of DenseCL."""

    dense_weight: float = Field(default=0.5, gt=0, le=1)
    """λ: weight of the contrast of places; that of whole images has 1 − λ."""
    num_grid: int | None = Field(default=None, ge=1)
    """Pool the feature map to so many rows and columns before its places are compared; null: all of its places."""
    projector: MoCoV2ProjectorOptions = MoCoV2ProjectorOptions()
    """The two heads after the backbone, one for its pooled features and one for each place of its map."""


class DenseCL(Method):
    """DenseCL: MoCo v2, and the same for every place of the feature map, for detection and segmentation.
    A place's positive is the place of the other view with the most similar features; its negatives are a queue of means
    over places.
    """

    Options = DenseCLOptions
    view_count = 2
    paper = "https://arxiv.org/abs/2011.09157"
    year = 2020
    needs = ("queue",)

    options: DenseCLOptions

    def __init__(self, backbone: Backbone, options: DenseCLOptions, run: RunInfo) -> None:
        """Raises UserError if the backbone has no map."""
        super().__init__(backbone, options, run)
        width = map_width(backbone, max(run.view_sizes, default=224), "backbone: densecl")
        self.projector, self.dense_projector = (
            build_head(options.projector, dim, layers=2, norm="none") for dim in (backbone.spec.feature_dim, width)
        )
        self.momentum_encoder = MomentumEncoder(**self._online())
        self.queue, self.dense_queue = (Queue(options.queue_size, options.projector.output_dim) for _ in range(2))

    def _online(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "projector": self.projector, "dense_projector": self.dense_projector}

    @classmethod
    def recipe(cls, options: DenseCLOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        return {"preset": "moco_v2"}

    @classmethod
    def defaults(cls, options: DenseCLOptions, spec: BackboneSpec) -> DefaultSections:
        """The authors' for ResNets. They train no ViT: for one the optimizer and the warm-up of MoCo v3's authors."""
        if spec.patch_size is not None:
            adamw = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.1, "exclude": [], "scale_lr": "batch/256"}
            return {"optimizer": adamw, "schedule": {"name": "cosine", "warmup_epochs": 40}}
        return {"optimizer": SGD, "schedule": {"name": "cosine"}, "backbone": {"zero_init_residual": False}}

    def chance_loss(self, images: int) -> float:
        return math.log1p(self.options.queue_size)

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, how well keys are found among 1 + K (`dense_…`: those of places), and the first view's
        features. Raises UserError if there are not two views."""
        x1, x2 = two_views(batch, "densecl")
        features = self.backbone(x1)
        places = self._places(features)  # N×L×E
        queries, dense_queries = self.projector(features.pooled), self.dense_projector(places)  # N×D, N×L×D
        keys, dense_keys, key_places = self._keys(x2, places)  # without gradient
        # Which place of the other view is most like a place: by the backbone's features, not by those of the head.
        with torch.autocast(x1.device.type, enabled=False):  # in 16 bits many places would be equally similar
            similar = unit_rows(places.detach()) @ unit_rows(key_places).transpose(1, 2)  # N×L×L
        chosen = similar.argmax(dim=2, keepdim=True).expand_as(dense_keys)
        positives = dense_keys.gather(1, chosen)
        dim, tau, weight = queries.shape[1], self.options.temperature, self.options.dense_weight
        loss, metrics = queue_info_nce_and_metrics(queries, keys, self.queue.keys, tau)
        dense, found = queue_info_nce_and_metrics(
            dense_queries.reshape(-1, dim), positives.reshape(-1, dim), self.dense_queue.keys, tau
        )
        metrics |= {f"dense_{name}": value for name, value in found.items()}
        carry = {"keys": unit_rows(keys), "dense_keys": unit_rows(dense_keys.mean(dim=1))}
        return Step((1 - weight) * loss + weight * dense, metrics, features=features.pooled.detach(), carry=carry)

    def _places(self, features: Features) -> Tensor:
        """The places of a map that are compared, (N, L, E)."""
        places, side = map_of(features), self.options.num_grid
        return (places if side is None else resize_map(places, (side, side), "mean")).flatten(1, 2)

    def _keys(self, images: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of whole images (N, D), and of their places (N, L, D) with the backbone's features there (N, L, E)."""
        encoder, length = self.momentum_encoder, like.shape[1]

        def encode(x: Tensor) -> Tensor:  # as one tensor, which a shuffle sends between processes
            with torch.no_grad():
                features = encoder.backbone(x)
                places = self._places(features)
                parts = encoder.projector(features.pooled), encoder.dense_projector(places), places
                return torch.cat([in_full_precision(part).flatten(1) for part in parts], dim=1)

        packed = encode_shuffled(encoder, images, self.queue.pushed, enabled=self.options.shuffle_bn, encode=encode)
        dim = self.options.projector.output_dim
        keys, dense_keys, places = torch.split(packed, [dim, length * dim, like[0].numel()], dim=1)
        return keys, dense_keys.reshape(-1, length, dim), places.reshape(like.shape)

    def schedules(self) -> dict[str, StepFunction]:
        """The EMA momentum m(t); the update after step t, which is that before step t + 1, is by m(t + 1)."""
        return {"momentum": self.options.momentum_schedule(self.run.total_steps)}

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        for each in carry:
            self.queue.push(all_gather(each["keys"]))
            self.dense_queue.push(all_gather(each["dense_keys"]))
        # The authors update before the next keys are computed, with the same weights: the same numbers.
        self.momentum_encoder.follow(**self._online(), value=self.options.momentum_at(progress))
