"""SwAV: views predict each other's assignments to prototypes, which Sinkhorn's iterations keep evenly used.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, *Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments*, https://arxiv.org/abs/2006.09882. Multi-crop comes from the same paper: a few large views, which are
assigned, and many small ones, which only predict.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, Progress, RunInfo, Step
from sslcli.contracts.options import Options
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather, rank, world_size
from sslcli.losses import mean_cosines, sinkhorn, swapped_prediction, unit_rows
from sslcli.modules import Prototypes, Queue, build_head, each_view, global_and_local


class SwAVProjectorOptions(Options):
    """The projector: linear–BN–ReLU, then a plain linear layer with bias; L2 normalization follows."""

    layers: int = Field(default=2, ge=1, le=100)
    """Linear layers."""
    hidden_dim: int = Field(default=2048, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings and of the prototypes."""


class SwAVOptions(MethodOptions):
    """Options of SwAV."""

    projector: SwAVProjectorOptions = SwAVProjectorOptions()
    """The head after the backbone."""
    prototypes: int = Field(default=3000, ge=2)
    """Number of prototypes."""
    temperature: float = Field(default=0.1, gt=0)
    """Divides the scores where a view predicts."""
    epsilon: float = Field(default=0.05, gt=0)
    """Divides the scores where a view is assigned; larger values give softer assignments."""
    sinkhorn_iterations: int = Field(default=3, ge=1)
    """Iterations that normalize the assignments' columns and rows."""
    assigned_views: int = Field(default=2, ge=1, le=100)
    """Number of views that get assignments: the first ones, all of the largest size. The others only predict."""
    frozen_epochs: float = Field(default=1.0, ge=0, le=1e9)
    """Epochs at the start in which the prototypes are frozen. (The paper's 5005 and 313 steps are one epoch of ImageNet
    in batches of 256 and 4096.)"""
    frozen_steps: int | None = Field(default=None, ge=0)
    """The same in optimizer steps; replaces `frozen_epochs`."""
    queue_size: int = Field(default=3840, ge=0)
    """Earlier embeddings of each assigned view that are included in Sinkhorn's iterations, for small batches; 0: none.
    Rounded down to whole global batches; so a batch larger than the queue means no queue, as in the paper's 4096."""
    queue_start_epoch: float = Field(default=15.0, ge=0, le=1e9)
    """Epoch from which the queue is filled; it is used once it is full."""


class SwAV(Method):
    """SwAV: predicts from one view which cluster another belongs to, on global and local views.
    With z = projector(backbone(x))/‖·‖ and scores = z·C the loss is −Σ q log softmax(scores/τ), with q =
    sinkhorn(scores) of another view."""

    Options = SwAVOptions
    batch_coupled = True
    minimum_views = 2
    paper = "https://arxiv.org/abs/2006.09882"
    year = 2020
    #: The paper's small-batch run (256). Its batch of 4096 has lr 4.8 (here 0.3 with `scale_lr`), 10 warm-up epochs
    #: from 0.3, and no queue.

    options: SwAVOptions

    def __init__(self, backbone: Backbone, options: SwAVOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        dim = options.projector.output_dim
        self.projector = build_head(options.projector, backbone.spec.feature_dim)
        self.prototypes = Prototypes(dim, options.prototypes)
        length = options.queue_size - options.queue_size % run.batch_size
        # One ring for all assigned views: a row has each view's embedding of the same image, side by side.
        self.queue = Queue(length, options.assigned_views * dim) if length else None
        self.register_load_state_dict_pre_hook(_fit_queue)  # type: ignore[no-untyped-call]
        epochs = options.frozen_epochs * run.steps_per_epoch
        self._frozen_steps = round(epochs) if options.frozen_steps is None else options.frozen_steps
        self._queue_start = round(options.queue_start_epoch * run.steps_per_epoch)

    @classmethod
    def recipe(cls, options: SwAVOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """The paper's multi-crop; up to 64 pixels, where local views would have 14 to 27, solo-learn's two views."""
        if image_size <= 64:
            return {"preset": "simclr", "strength": 1.0, "blur": 0.5}
        return {"preset": "swav", "local_multiple": spec.size_multiple}

    @classmethod
    def defaults(cls, options: SwAVOptions, spec: BackboneSpec) -> DefaultSections:
        return {
            "optimizer": {
                "name": "larc",
                "lr": 0.6,
                "weight_decay": 1e-6,
                "clip": False,
                "exclude": [],
                "scale_lr": "batch/256",
            },
            "schedule": {"name": "cosine", "final": 0.001},
            "backbone": {"zero_init_residual": False},
        }

    def chance_loss(self, images: int) -> float:
        return math.log(self.options.prototypes)

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, `pos_cos` and `neg_cos` of the first two views' embeddings, and `prototype_use`, the
        perplexity of the first view's mean prediction: the number of prototypes if all are predicted equally often.
        Raises UserError if fewer than two views, or than `assigned_views`, come first and are the largest."""
        assigned = self.options.assigned_views
        x, _ = global_and_local(batch, "swav", least=max(assigned, 2))
        h = each_view(self.backbone, x)  # N×D each
        z = unit_rows(self.projector(torch.cat(h)))  # VN×E: the projector's batch norms see all views
        scores = self.prototypes(z).chunk(len(x))  # N×K each
        embeddings = z.detach().chunk(len(x))  # N×E each
        q = [self._assign(scores[view].detach(), embeddings[view], view) for view in range(assigned)]  # N×K each
        loss = swapped_prediction(scores, q, self.options.temperature)
        mean = torch.softmax(scores[0].detach() / self.options.temperature, dim=1).mean(dim=0)
        metrics = {
            **mean_cosines([(embeddings[0], embeddings[1])]),
            "prototype_use": torch.special.entr(mean).sum().exp(),
        }
        carry = {} if self.queue is None else {"embeddings": torch.cat(embeddings[:assigned], dim=1)}
        return Step(loss, metrics, features=h[0].detach(), carry=carry)

    @torch.no_grad()
    def _assign(self, scores: Tensor, embeddings: Tensor, view: int) -> Tensor:
        """Assignments (N, K) of a view, made with its part of the queue once that is full."""
        epsilon, iterations = self.options.epsilon, self.options.sinkhorn_iterations
        if self.queue is None:
            return sinkhorn(scores, epsilon, iterations)
        # Every process has the whole queue, and Sinkhorn sums over processes: each takes its own chunk of it.
        keys = self.queue.keys.chunk(world_size())[rank()].chunk(self.options.assigned_views, dim=1)[view]
        # The view's own scores once more: cheaper than a second copy of all the queue's.
        joined = self.prototypes(torch.cat((embeddings, keys.to(embeddings.dtype))))
        # The queue's rows are there whether they count or not: one shape, so that nothing waits or is recompiled.
        used = self.queue.full() | (torch.arange(len(joined), device=joined.device) < len(scores))
        return sinkhorn(joined, epsilon, iterations, used=used, rows=len(scores))

    def after_backward(self, progress: Progress) -> None:
        """While frozen the prototypes have no gradient at all: optimizers skip them, decay and momentum included."""
        if progress.step < self._frozen_steps:
            self.prototypes.weight.grad = None

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        if progress.step > self._frozen_steps:
            self.prototypes.normalize()
        if self.queue is not None and progress.step > self._queue_start:
            for micro_batch in carry:
                self.queue.push(all_gather(micro_batch["embeddings"]))


def _fit_queue(method: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Lets a run go on with another batch size, of which the queue's length is a multiple: its newest rows stay."""
    names = {name: f"{prefix}queue.{name}" for name in ("keys", "place", "pushed")}
    stored = {name: state[key] for name, key in names.items() if key in state}
    if method.queue is None:
        fitting = {}
    elif not stored:
        fitting = method.queue.state_dict()
    elif len(stored) < len(names) or len(stored["keys"]) == len(method.queue.keys):
        return
    else:
        fitting = method.queue.fitted(stored)
    for name, key in names.items():
        state.pop(key, None)
        if name in fitting:
            state[key] = fitting[name]
