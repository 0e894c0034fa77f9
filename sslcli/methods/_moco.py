"""What MoCo v1, v2 and EqCo share: a query, the key of another view from the momentum encoder, and a queue of earlier
keys as negatives.

He et al., *Momentum Contrast for Unsupervised Visual Representation Learning*, https://arxiv.org/abs/1911.05722.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, MethodOptions, Progress, RunInfo, Step
from sslcli.distributed import all_gather, is_distributed
from sslcli.losses.info_nce import unit_rows
from sslcli.losses.queue_info_nce import queue_info_nce
from sslcli.modules.momentum import MomentumEncoder
from sslcli.modules.multicrop import by_resolution, global_count
from sslcli.modules.queue import Queue
from sslcli.modules.shuffle import has_local_batch_norm, shuffled

#: MoCo v1 and v2 decay every parameter, biases and norms too.
SGD: Mapping[str, Any] = {
    "name": "sgd",
    "lr": 0.03,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "exclude": [],
    "scale_lr": "batch/256",
}


class QueueOptions(MethodOptions):
    """Options of the methods with a queue."""

    temperature: float = Field(default=0.2, gt=0)
    """Divides the cosines in the loss."""
    queue_size: int = Field(default=65536, ge=1)
    """Keys in the queue: the negatives of every query. The batch need not divide it."""
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """How slowly the momentum encoder follows (at first, if `final_momentum` is set)."""
    final_momentum: float | None = Field(default=None, ge=0, le=1)
    """Where a cosine takes the momentum over the run; null: it stays what it is."""
    symmetric: bool = False
    """Average both directions, each with a queue of its own: view 2's keys, then view 1's. The papers have one."""
    shuffle_bn: bool = True
    """On several processes whose batch norms are not synchronized, encode the keys in shuffled groups."""


class QueueContrast(Method):
    """InfoNCE of a query against the key of view 2 and the queue.

    Every view but the second is a query: one, as in the papers, with two views. Further ones, of any size, are further
    queries against the same key; the loss is the mean over all queries. Keys enter the queue after the step.

    Attributes:
        label: the method's name, for messages.
    """

    Options = QueueOptions
    minimum_views = 2
    label: ClassVar[str]

    options: QueueOptions

    def __init__(self, backbone: Backbone, options: QueueOptions, run: RunInfo, projector: nn.Module, dim: int) -> None:
        """Args:
        backbone: as for every method.
        options: as for every method.
        run: as for every method.
        projector: (N, feature_dim) → (N, dim).
        dim: of the embeddings.
        """
        super().__init__(backbone, options, run)
        self.projector = projector
        self.momentum_encoder = MomentumEncoder(backbone, projector)
        self.queues = nn.ModuleList(Queue(options.queue_size, dim) for _ in range(1 + options.symmetric))

    def negative_weight(self) -> float:
        """What each negative counts for in the loss's denominator."""
        return 1.0

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, how well keys are found among 1 + K, and the first view's features.

        Raises:
            UserError: if the first two views are not the largest.
        """
        whole = global_count(batch, self.label)
        images = [view.image for view in batch.views]
        features = self.backbone(images[0]).pooled  # N×D; one view at a time, so that batch norm sees one at a time
        queries = {0: self.projector(features)}  # N×E each
        # With one direction the second view is a key and never a query.
        queries |= {i: self._query(images[i]) for i in range(1, whole) if i > 1 or self.options.symmetric}
        if len(images) > whole:
            queries |= dict(enumerate(by_resolution(self._query, images[whole:]), start=whole))
        temperature, losses, found, carry = self.options.temperature, [], [], {}
        for direction, queue in enumerate(self._queues()):
            view = 1 - direction
            key = unit_rows(self._key(images[view]))  # N×E, without gradient
            asked = [query for i, query in queries.items() if i != view]
            against = (key.repeat(len(asked), 1), queue.keys, temperature, self.negative_weight())
            loss, each = queue_info_nce(torch.cat(asked), *against)
            losses.append(loss)
            found.append(each)
            carry[f"keys{direction}"] = key
        metrics = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        return Step(torch.stack(losses).mean(), metrics, features=features.detach(), carry=carry)

    def _queues(self) -> list[Queue]:
        return [queue for queue in self.queues if isinstance(queue, Queue)]

    def _query(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.projector(self.backbone(images).pooled)
        return embedding

    def _key(self, images: Tensor) -> Tensor:
        shuffle = self.options.shuffle_bn and self.training and is_distributed()
        # With synchronized norms a shuffle would move all images between processes, and change nothing.
        if shuffle and has_local_batch_norm(self.momentum_encoder):
            return shuffled(self.momentum_encoder, images, self._queues()[0].pushed)
        key: Tensor = self.momentum_encoder(images)
        return key

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        for direction, queue in enumerate(self._queues()):
            for each in carry:
                queue.push(all_gather(each[f"keys{direction}"]))
        start, final, total = self.options.momentum, self.options.final_momentum, self.run.total_steps
        # The papers update before the next keys are computed, with the same weights: the same numbers.
        self.momentum_encoder.follow(self.backbone, self.projector, start, final, progress.step, total)
