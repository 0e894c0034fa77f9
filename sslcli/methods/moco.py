"""A workbench after untitled-ai's: MoCo v2 with knobs that turn it into SimCLR, BYOL and VICReg one step at a time.

He et al. (MoCo), https://arxiv.org/abs/1911.05722; Chen et al. (MoCo v2), https://arxiv.org/abs/2003.04297.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather, is_distributed
from sslcli.losses import vicreg_terms
from sslcli.losses.contrast import (
    Contrast,
    batch_contrast,
    contrast_bce,
    contrast_ce,
    contrast_monitors,
    inner_product,
    queue_contrast,
    sphere_rows,
)
from sslcli.losses.queue_info_nce import queue_info_nce
from sslcli.modules.heads import mlp
from sslcli.modules.momentum import MomentumEncoder
from sslcli.modules.multicrop import by_resolution
from sslcli.modules.pairs import prediction_cosines, two_views
from sslcli.modules.queue import Queue
from sslcli.modules.shuffle import has_local_batch_norm, shuffled

from ._workbench import MoCoOptions, MoCoPredictorOptions, MoCoProjectorOptions


class MoCo(Method):
    """A workbench: any of four losses, with negatives from a queue, the batch or nowhere, with or without a momentum
    encoder, a predictor, the unit sphere, EqCo's margin.

    Query q = predictor(projector(backbone(x))), key k = projector(backbone(x′)) of the other view, from the momentum
    encoder if there is one. The loss is `loss_factor` × the mean over the directions (1, or 2 with
    `both_views_as_queries`) of what `loss` makes of q and k. With a preset's options it is, on the same embeddings,
    exactly 1 × that method's loss: InfoNCE (`moco_v2`), NT-Xent (`simclr`), the sum of both directions of BYOL's
    regression (`byol`, by a factor of 4), VICReg (`vicreg`).

    After each step the queue takes, of each micro-batch in order, the keys of view 2 of all processes in rank order,
    then, if both views are queries, those of view 1; normalized if the loss normalizes them. It is one queue, with
    which all queries are compared, and it holds keys of earlier steps alone.

    Attributes:
        steps: optimizer steps done, a 0-dim int64 tensor; shuffled batch norm draws by it.
    """

    Options = MoCoOptions
    batch_coupled = True
    view_count = 2
    paper = "https://arxiv.org/abs/2003.04297"
    defaults = {
        "optimizer": {
            "name": "sgd",
            "lr": 0.5,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "exclude": [],
            "scale_lr": "batch/256",
        },
        "schedule": {"name": "cosine"},
    }

    options: MoCoOptions
    steps: Tensor

    def __init__(self, backbone: Backbone, options: MoCoOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        features, embedding = backbone.spec.feature_dim, options.projector.output_dim
        self.projector = _head(features, options.projector.hidden_dim or features, embedding, options.projector)
        self.predictor: nn.Module = nn.Identity()
        if options.predictor.layers:
            self.predictor = _head(embedding, options.predictor.hidden_dim, embedding, options.predictor)
        self.momentum_encoder = MomentumEncoder(backbone, self.projector) if options.momentum_encoder else None
        self.queue = Queue(options.queue_size, embedding) if options.negatives == "queue" else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def recipe(cls, options: MoCoOptions, image_size: int) -> RecipeSection:
        """MoCo v2's views; with a preset those of its method."""
        if options.preset == "simclr":
            return {"preset": "simclr"}
        if options.preset in ("byol", "vicreg"):
            return {"preset": "cifar_asym" if image_size <= 64 else "byol"}
        return {"preset": "moco_v2"}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the monitors of positive and negative pairs, and the first view's features.

        Raises:
            UserError: if there are not two views.
        """
        options = self.options
        images = two_views(batch, "moco")
        both = options.both_views_as_queries
        # Without a momentum encoder the online network makes the key of view 2 too.
        features, z = self._project(images[: 2 if both or not options.momentum_encoder else 1])
        queries = self._predict(z[: 2 if both else 1])
        own_keys = both or (options.negatives == "batch" and options.batch_negatives == "all")
        keys = {view: self._key(images[view], z, view) for view in ((0, 1) if own_keys else (1,))}
        compared = [self._compare(query, keys[1 - view], keys.get(view)) for view, query in enumerate(queries)]
        loss = options.loss_factor * torch.stack([value for value, _ in compared]).mean()
        found = [metrics for _, metrics in compared]
        metrics = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        carry = {}
        if self.queue is not None:
            pushed = (1, 0) if both else (1,)
            carry = {f"keys{view}": sphere_rows(keys[view].detach(), options.unit_sphere) for view in pushed}
        return Step(loss, metrics, features=features.detach(), carry=carry)

    def _project(self, images: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The first view's features (N, D), and the projections (N, E) of each view."""
        if self.options.views_together:
            h = by_resolution(self._pooled, images)
            return h[0], list(self.projector(torch.cat(h)).chunk(len(h)))
        h = [self._pooled(x) for x in images]
        return h[0], [self.projector(x) for x in h]

    def _pooled(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.backbone(images).pooled
        return pooled

    def _predict(self, z: list[Tensor]) -> list[Tensor]:
        if self.options.views_together:
            return list(self.predictor(torch.cat(z)).chunk(len(z)))
        return [self.predictor(x) for x in z]

    def _key(self, images: Tensor, z: list[Tensor], view: int) -> Tensor:
        """The key (N, E) of a view: the momentum encoder's, or the online projection."""
        if self.momentum_encoder is None:
            return z[view].detach() if self.options.stop_gradient else z[view]
        # With synchronized norms a shuffle would move all images between processes, and change nothing.
        shuffle = self.options.shuffle_bn and self.training and is_distributed()
        if shuffle and has_local_batch_norm(self.momentum_encoder):
            return shuffled(self.momentum_encoder, images, 2 * self.steps + view)
        key: Tensor = self.momentum_encoder(images)
        return key

    def _compare(self, query: Tensor, key: Tensor, own: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one direction and its monitors; `own` are the keys of the queries' own view."""
        options = self.options
        if options.loss == "vic":
            rows = [sphere_rows(x, options.unit_sphere) for x in (query, key)]
            invariance, variance, covariance = vicreg_terms(rows, ((0, 1),), options.variance_epsilon)
            loss = options.invariance * invariance + options.variance * variance + options.covariance * covariance
            terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
            named = {name: term.detach() for name, term in terms.items()}
            return loss, {**named, **prediction_cosines((query, key))}
        if options.loss == "ip":
            return inner_product(query, key, unit_sphere=options.unit_sphere), prediction_cosines((query, key))
        if self.queue is not None and options.loss == "ce" and options.unit_sphere:
            # Of all the combinations the one that is MoCo: it has a way that keeps no logits.
            weight = 1.0 if options.eqco_alpha is None else options.eqco_alpha / options.queue_size
            return queue_info_nce(query, key, self.queue.keys, options.temperature, weight)
        contrast = self._contrast(query, key, own)
        loss = contrast_ce(contrast, options.eqco_alpha) if options.loss == "ce" else contrast_bce(contrast)
        # Where there are no negatives to be found among, the batch's other images serve the monitors.
        found = prediction_cosines((query, key)) if options.negatives == "none" else contrast_monitors(contrast)
        return loss, found

    def _contrast(self, query: Tensor, key: Tensor, own: Tensor | None) -> Contrast:
        options = self.options
        if options.negatives == "batch":
            others = own if options.batch_negatives == "all" else None
            return batch_contrast(
                query, key, others, options.temperature, unit_sphere=options.unit_sphere, gather=options.gather_keys
            )
        negatives = key[:0] if self.queue is None else self.queue.keys
        return queue_contrast(query, key, negatives, options.temperature, unit_sphere=options.unit_sphere)

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        if self.queue is not None:
            for each in carry:
                for keys in each.values():
                    self.queue.push(all_gather(keys))
        if self.momentum_encoder is not None:
            start, final, total = self.options.momentum, self.options.final_momentum, self.run.total_steps
            self.momentum_encoder.follow(self.backbone, self.projector, start, final, progress.step, total)
        self.steps.add_(1)


def _head(
    input_dim: int, hidden_dim: int, output_dim: int, options: MoCoProjectorOptions | MoCoPredictorOptions
) -> nn.Sequential:
    return mlp(
        input_dim,
        hidden_dim,
        output_dim,
        options.layers,
        norm=options.norm,
        last_norm=options.last_norm,
        last_bias=options.last_bias,
        groups=options.groups,
        weight_standardization=options.weight_standardization,
    )
