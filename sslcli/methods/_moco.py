"""What MoCo v1, v2, EqCo and the workbench `moco` share: a query, the key of another view from the momentum encoder,
and a queue of earlier keys as negatives.

He et al., *Momentum Contrast for Unsupervised Visual Representation Learning*, https://arxiv.org/abs/1911.05722.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, Step, StepFunction
from sslcli.distributed import all_gather
from sslcli.losses import mean_over, queue_info_nce_and_metrics, unit_rows
from sslcli.modules import MomentumEncoder, MomentumOptions, Queue, each_view, global_and_local
from sslcli.modules.shuffle import encode_shuffled

#: MoCo v1 and v2 decay every parameter, biases and norms too.
SGD = {"name": "sgd", "lr": 0.03, "weight_decay": 1e-4, "exclude": [], "scale_lr": "batch/256"}


class KeyOptions(MomentumOptions):
    """Options of keys from a momentum encoder, of a queue of them, and of how queries are compared with keys."""

    temperature: float = Field(default=0.2, gt=0)
    """Divides the cosines in the loss."""
    queue_size: int = Field(default=65536, ge=1)
    """Keys in the queue: the negatives of every query. It need not be a multiple of the batch."""
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """EMA momentum of the momentum encoder (initial momentum, if `final_momentum` is set)."""
    final_momentum: float | None = Field(default=None, ge=0, le=1)  # type: ignore[assignment]
    """EMA momentum at the end of the run, approached along a cosine; null: constant."""
    shuffle_bn: bool = True
    """On several processes whose batch norms are not synchronized, encode the keys in shuffled groups."""


class QueueOptions(KeyOptions):
    """Options of the methods with a queue."""

    symmetric: bool = False
    """Average both directions, each with its own queue: view 2's keys, then view 1's. The papers use one direction."""


class QueueContrast(Method):
    """InfoNCE of a query against the key of view 2 and the queue.

    Every view but the second is a query: one, as in the papers, with two views. Further ones, of any size, are further
    queries against the same key; the loss is the mean over all queries. Keys enter the queue after the step.

    Attributes:
        label: the method's name, for messages.
    """

    Options = QueueOptions
    minimum_views = 2
    needs = ("queue",)
    label: ClassVar[str]

    options: QueueOptions
    queues: Any

    def __init__(self, backbone: Backbone, options: QueueOptions, run: RunInfo, projector: nn.Module, dim: int) -> None:
        """`projector`: (N, feature_dim) → (N, dim)."""
        super().__init__(backbone, options, run)
        self.projector = projector
        self.momentum_encoder = MomentumEncoder(backbone=backbone, projector=projector)
        self.queues = nn.ModuleList(Queue(options.queue_size, dim) for _ in range(1 + options.symmetric))

    def negative_weight(self) -> float:
        """The weight of each negative in the loss's denominator."""
        return 1.0

    def chance_loss(self, images: int) -> float:
        return math.log1p(self.negative_weight() * self.options.queue_size)

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, how well keys are found among 1 + K, and the first view's features. Raises UserError if
        there are not two global views or more, the first ones."""
        x, global_views = global_and_local(batch, self.label)
        options = self.options
        # One view at a time, so that batch norm sees one at a time; small views of one size together.
        h = self.backbone(x[0]).pooled  # N×D
        q = {0: self.projector(h)}  # N×E each
        # With one direction the second view is a key and never a query.
        q |= {i: self._query(x[i]) for i in range(1 if options.symmetric else 2, global_views)}
        q |= dict(enumerate(each_view(self._query, x[global_views:]), start=global_views))
        results, carry = [], {}
        for direction, queue in enumerate(self.queues):
            view = 1 - direction
            keys = encode_shuffled(self.momentum_encoder, x[view], self.queues[0].pushed, enabled=options.shuffle_bn)
            k = unit_rows(keys)  # N×E, without gradient
            queries = [q[i] for i in q if i != view]
            against = (k.repeat(len(queries), 1), queue.keys, options.temperature, self.negative_weight())
            results.append(queue_info_nce_and_metrics(torch.cat(queries), *against))
            carry[f"keys{direction}"] = k
        loss, metrics = mean_over(results)
        return Step(loss, metrics, features=h.detach(), carry=carry)

    def _query(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.projector(self.backbone(images).pooled)
        return embedding

    def schedules(self) -> dict[str, StepFunction]:
        """The EMA momentum m(t); the update after step t, which is that before step t + 1, is by m(t + 1)."""
        return {"momentum": self.options.momentum_schedule(self.run.total_steps)}

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        for direction, queue in enumerate(self.queues):
            for each in carry:
                queue.push(all_gather(each[f"keys{direction}"]))
        # The papers update before the next keys are computed, with the same weights: the same numbers.
        self.momentum_encoder.follow(
            backbone=self.backbone, projector=self.projector, value=self.options.momentum_at(progress)
        )
