"""A workbench after untitled-ai's: MoCo v2 with options that turn it into SimCLR, BYOL and VICReg one step at a time.

He et al. (MoCo), https://arxiv.org/abs/1911.05722; Chen et al. (MoCo v2), https://arxiv.org/abs/2003.04297.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather
from sslcli.losses import mean_cosines, mean_over, queue_info_nce_and_metrics, vicreg_and_metrics
from sslcli.losses.contrast import contrast_bce, contrast_ce, pair_logits, sphere_rows
from sslcli.modules import MomentumEncoder, Queue, build_head, cosine_momentum, each_view, two_views
from sslcli.modules.shuffle import encode_shuffled

from ._moco import SGD
from ._workbench import MoCoOptions


class MoCo(Method):
    """A workbench: any of four losses, with negatives from a queue, the batch or nowhere, with or without a momentum
    encoder, a predictor, the unit sphere, EqCo's margin.

    Query q = predictor(projector(backbone(x))), key k = projector(backbone(x′)) of the other view, from the momentum
    encoder if there is one. The loss is `loss_factor` × the mean over the directions (1, or 2 with
    `both_views_as_queries`) of `loss` of q and k. With a preset's options it is, on the same embeddings, exactly 1 ×
    that method's loss: InfoNCE (`moco_v2`), NT-Xent (`simclr`), the sum of both directions of BYOL's regression
    (`byol`, by a factor of 4), VICReg (`vicreg`).

    After each step the queue takes, of each micro-batch in order, the keys of view 2 of all processes in rank order,
    then, if both views are queries, those of view 1; normalized if the loss normalizes them. It is one queue, with
    which all queries are compared, and it holds keys of earlier steps only.

    Attributes:
        steps: optimizer steps done, a 0-dim int64 tensor; shuffled batch norm draws by it.
    """

    Options = MoCoOptions
    batch_coupled = True
    view_count = 2
    paper = "https://arxiv.org/abs/2003.04297"
    defaults = {"optimizer": {**SGD, "lr": 0.5}, "schedule": {"name": "cosine"}}

    options: MoCoOptions
    steps: Tensor

    def __init__(self, backbone: Backbone, options: MoCoOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        dim = options.projector.output_dim
        self.projector = build_head(options.projector, backbone.spec.feature_dim)
        self.predictor: nn.Module = nn.Identity()
        if options.predictor.layers:
            self.predictor = build_head(options.predictor, dim, output_dim=dim)
        self.momentum_encoder = MomentumEncoder(backbone, self.projector) if options.momentum_encoder else None
        self.queue = Queue(options.queue_size, dim) if options.negatives == "queue" else None
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
        x = two_views(batch, "moco")
        both, together = options.both_views_as_queries, options.views_together
        # Without a momentum encoder the online network makes the key of view 2 too.
        h = each_view(self.backbone, x[: 2 if both or not options.momentum_encoder else 1], together)  # N×D each
        z = each_view(self.projector, h, together)  # N×E each
        q = each_view(self.predictor, z[: 2 if both else 1], together)  # N×E each
        own_keys = both or (options.negatives == "batch" and options.batch_negatives == "all")
        k = {view: self._key(x[view], z, view) for view in ((0, 1) if own_keys else (1,))}  # N×E each
        loss, metrics = mean_over([self._compare(query, k[1 - view], k.get(view)) for view, query in enumerate(q)])
        carry = {}
        if self.queue is not None:
            carry = {f"keys{v}": sphere_rows(k[v].detach(), options.unit_sphere) for v in ((1, 0) if both else (1,))}
        return Step(options.loss_factor * loss, metrics, features=h[0].detach(), carry=carry)

    def _key(self, images: Tensor, z: list[Tensor], view: int) -> Tensor:
        """The key (N, E) of a view: the momentum encoder's, or the online projection."""
        if self.momentum_encoder is None:
            return z[view].detach() if self.options.stop_gradient else z[view]
        return encode_shuffled(self.momentum_encoder, images, 2 * self.steps + view, enabled=self.options.shuffle_bn)

    def _compare(self, query: Tensor, key: Tensor, own: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one direction and its monitors; `own` are the keys of the queries' own view."""
        options, sphere, tau = self.options, self.options.unit_sphere, self.options.temperature
        if options.loss in ("ip", "vic"):
            q, k = sphere_rows(query, sphere), sphere_rows(key, sphere)
            if options.loss == "ip":  # half of BYOL's loss, with gradient to whichever of the two requires it
                return 1 - (q * k).sum(dim=1).mean(), mean_cosines([(query, key)])
            weights = (options.invariance, options.variance, options.covariance, options.variance_epsilon)
            loss, terms = vicreg_and_metrics((q, k), ((0, 1),), *weights)
            return loss, {**terms, **mean_cosines([(query, key)])}
        if self.queue is not None and options.loss == "ce" and sphere:
            # MoCo itself, among all the combinations: its loss keeps no logits.
            weight = 1.0 if options.eqco_alpha is None else options.eqco_alpha / options.queue_size
            return queue_info_nce_and_metrics(query, key, self.queue.keys, tau, weight)
        if options.negatives == "batch":
            own = own if options.batch_negatives == "all" else None
            pairs = pair_logits(query, key, tau, own=own, unit_sphere=sphere, gather=options.gather_keys)
        else:
            negatives = key[:0] if self.queue is None else self.queue.keys
            pairs = pair_logits(query, key, tau, negatives=negatives, unit_sphere=sphere)
        loss = contrast_ce(pairs, options.eqco_alpha) if options.loss == "ce" else contrast_bce(pairs)
        # Without negatives, the batch's other images serve the monitors.
        return loss, mean_cosines([(query, key)]) if options.negatives == "none" else pairs.metrics

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        if self.queue is not None:
            for each in carry:
                for keys in each.values():
                    self.queue.push(all_gather(keys))
        if self.momentum_encoder is not None:
            options = self.options
            m = cosine_momentum(options.momentum, progress.step, self.run.total_steps, options.final_momentum)
            self.momentum_encoder.update(self.backbone, self.projector, m)
        self.steps.add_(1)
