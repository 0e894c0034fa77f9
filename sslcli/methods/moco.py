"""A workbench after untitled-ai's: MoCo v2 with options that turn it into SimCLR, BYOL and VICReg one step at a time.

He et al. (MoCo), https://arxiv.org/abs/1911.05722; Chen et al. (MoCo v2), https://arxiv.org/abs/2003.04297. The heads
take any norm for studies of batch norm in BYOL, such as Richemond et al.'s, https://arxiv.org/abs/2010.10241.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, DefaultSections, Method, Progress, RunInfo, Step, StepFunction
from sslcli.contracts.views import RecipeSection
from sslcli.distributed import all_gather
from sslcli.losses import mean_cosines, mean_over, queue_info_nce_and_metrics, vicreg_and_metrics
from sslcli.losses.contrast import contrast_bce, contrast_ce, contrast_ip, pair_logits, sphere_rows
from sslcli.losses.info_nce import negative_weight
from sslcli.modules import MomentumEncoder, Queue, build_head, each_view, two_views
from sslcli.modules.heads import AnyNormHeadOptions, LastNorm
from sslcli.modules.momentum import TargetMomentumOptions
from sslcli.modules.norms import NormName
from sslcli.modules.shuffle import encode_shuffled

from ._moco import SGD, KeyOptions
from .byol import BYOL
from .moco_v2 import MoCoV2
from .simclr import SimCLR
from .vicreg import VICReg, VICRegWeights

#: What a preset sets, where that differs from the options' own defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "moco_v2": {"momentum": 0.999},
    "simclr": {
        "negatives": "batch", "both_views_as_queries": True, "views_together": True, "loss_factor": 0.5,
        "momentum_encoder": False, "stop_gradient": False, "temperature": 0.5,
        "projector": {"norm": "batch", "last_norm": "no_bias", "last_bias": False},
    },
    "byol": {
        "loss": "ip",
        "loss_factor": 2.0,
        "negatives": "none",
        "both_views_as_queries": True,
        "final_momentum": 1.0,
        "shuffle_bn": False,
        "projector": {"hidden_dim": 4096, "output_dim": 256, "norm": "batch", "last_bias": False},
        "predictor": {"layers": 2, "hidden_dim": 4096, "norm": "batch", "last_bias": False},
    },
    "vicreg": {
        "loss": "vic",
        "negatives": "none",
        "momentum_encoder": False,
        "stop_gradient": False,
        "unit_sphere": False,
        "projector": {"layers": 3, "hidden_dim": 8192, "output_dim": 8192, "norm": "batch", "last_bias": False},
    },
}  # fmt: skip


#: What makes the norms of a head, for a predictor whose norm is the projector's.
_NORM = ("norm", "groups", "norm_eps", "norm_momentum")


class MoCoPredictorOptions(AnyNormHeadOptions):
    """The predictor, after the projector of the queries only; its output has the embeddings' dimension."""

    layers: int = Field(default=0, ge=0, le=100)
    """Number of linear layers; 0: no predictor."""
    hidden_dim: int = Field(default=512, ge=1)
    """Width of the hidden layers."""
    norm: NormName | Literal["same"] = "none"  # type: ignore[assignment]
    """Norm after each hidden layer; same: the projector's, with its groups, eps and momentum."""
    last_norm: LastNorm = "none"
    """Batch norm after the last layer: complete, without shift, without scale and shift, or none."""
    last_bias: bool = True
    """Whether the last linear layer has a bias; it has none where a batch norm follows."""

    legacy: ClassVar[Mapping[str, Any]] = {}


class MoCoProjectorOptions(MoCoPredictorOptions):
    """The projector, which the momentum encoder has too: linear–norm–ReLU, then a linear layer."""

    layers: int = Field(default=2, ge=0, le=100)
    """Number of linear layers; 0: no projector, the loss compares the backbone's features."""
    norm: NormName = "none"
    """Norm after each hidden layer."""
    hidden_dim: int | None = Field(default=None, ge=1)  # type: ignore[assignment]
    """Width of the hidden layers; null: the backbone's feature dimension."""
    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings that the loss compares; without layers it has to be the backbone's."""


class MoCoOptions(KeyOptions, TargetMomentumOptions, VICRegWeights):
    """Options of the workbench."""

    preset: Literal["none", "moco_v2", "simclr", "byol", "vicreg"] = "none"
    """Sets every other option (and the views, where the config has none) to this method's; those that you set yourself
    take precedence. `none` is untitled-ai's MoCo on STL-10. It does not set the optimizer and the schedule."""
    loss: Literal["ce", "bce", "ip", "vic"] = "ce"
    """Cross-entropy of the positive pair among the negatives, binary cross-entropy of each pair by itself, inner
    products without a temperature (1 − that of the positive pair, + 1 + each negative pair's), or VICReg's."""
    loss_factor: float = Field(default=1.0, gt=0)
    """Multiplies the loss."""
    reduction: Literal["sum", "mean"] = "sum"
    """`sum`, as untitled-ai's code: the losses of both directions and of `bce`'s 1 + K pairs are added up, the queue
    takes view 2's keys only, and EqCo's K on the batch counts the positive. `mean`, as sslcli 0.1: both are means, the
    queue takes both views' keys, and K is the number of negatives."""
    negatives: Literal["queue", "batch", "none"] = "queue"
    """Source of the negative pairs: keys of earlier steps, the batch's other images, or no negatives."""
    batch_negatives: Literal["all", "other_view"] = "all"
    """With negatives from the batch: the 2N − 2 keys of all other images, or as in untitled-ai's code the N − 1 of the
    other view."""
    gather_keys: bool = True
    """With negatives from the batch, on several processes: the keys of all of them, or a process's own. A queue always
    takes all, since it must be the same everywhere."""
    both_views_as_queries: bool = False
    """Add up both directions. Off: view 1 is the query, view 2 the key."""
    views_together: bool = False
    """Pass both views through the online network as one batch, so that its batch norms see them together, as SimCLR's
    do. Off: one view at a time."""
    momentum_encoder: bool = True
    """Compute the keys, without gradient, by a momentum encoder. Off: by the online network."""
    temperature: float = Field(default=0.2, gt=0)
    """Divides the inner products in `ce` and `bce`."""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """EMA momentum of the momentum encoder (initial momentum, if `final_momentum` is set)."""
    stop_gradient: bool = True
    """Without a momentum encoder: whether keys carry no gradient. A momentum encoder's and a queue's never do."""
    unit_sphere: bool = True
    """Normalize embeddings to length 1 before the loss, and before they enter the queue. Without it `ip` has no lower
    bound."""
    eqco_alpha: float | None = Field(default=None, gt=0)
    """EqCo's margin for `ce`: the number of negatives to emulate (65536 in its paper); null: no margin."""
    variance_epsilon: float = Field(default=1e-4, gt=0)
    """`vic`: added to the variance before its square root."""
    projector: MoCoProjectorOptions = MoCoProjectorOptions()
    """The head after the backbone."""
    predictor: MoCoPredictorOptions = MoCoPredictorOptions()
    """The head after the projector, of the queries only."""

    legacy: ClassVar[Mapping[str, Any]] = {**TargetMomentumOptions.legacy, "reduction": "mean"}

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        """Sets the preset's values where none are given; a config written out in full stays what it is."""
        name = values.get("preset") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in PRESETS:
            return values
        filled = dict(values)
        for key, value in PRESETS[name].items():
            given = filled.get(key, {} if isinstance(value, dict) else value)
            filled[key] = {**value, **given} if isinstance(value, dict) and isinstance(given, dict) else given
        return filled

    @model_validator(mode="after")
    def _check_compatibility(self) -> Self:
        if self.loss == "ce" and self.negatives == "none":
            raise ValueError("loss 'ce' is always 0 without negatives: set negatives to queue or batch")
        if self.loss == "vic" and self.negatives != "none":
            raise ValueError(f"loss 'vic' does not use negatives, and they are {self.negatives!r}: set them to none")
        if self.eqco_alpha is not None and self.loss != "ce":
            raise ValueError(f"eqco_alpha is a margin of loss 'ce', and loss is {self.loss!r}: leave it out")
        if self.loss == "vic" and not (self.invariance or self.variance or self.covariance):
            raise ValueError("loss 'vic' needs a weight above 0: invariance, variance or covariance")
        return self


class MoCo(Method):
    """A workbench that turns MoCo v2 into SimCLR, BYOL and VICReg one step at a time. Any of four losses, negatives
    from a queue, the batch or nowhere, with or without momentum encoder, predictor, unit sphere, EqCo's margin.

    Query q = predictor(projector(backbone(x))), key k = projector(backbone(x′)) of the other view, from the momentum
    encoder if there is one. The loss is `loss_factor` × the sum over the directions (1, or 2 with
    `both_views_as_queries`) of `loss` of q and k. With a preset's options it is, on the same embeddings, exactly 1 ×
    that method's loss: InfoNCE (`moco_v2`), NT-Xent (`simclr`, by a factor of ½), the sum of both directions of BYOL's
    regression (`byol`, by a factor of 2), VICReg (`vicreg`).

    After each step the queue takes, of each micro-batch in order, the keys of view 2 of all processes in rank order;
    normalized if the loss normalizes them. All queries are compared with this one queue.

    Attributes:
        steps: optimizer steps done, a 0-dim int64 tensor; shuffled batch norm draws by it.
    """

    Options = MoCoOptions
    batch_coupled = True
    view_count = 2
    paper = "https://arxiv.org/abs/2003.04297"
    year = 2020

    options: MoCoOptions
    steps: Tensor

    def __init__(self, backbone: Backbone, options: MoCoOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        dim, features = options.projector.output_dim, backbone.spec.feature_dim
        if not options.projector.layers and dim != features:
            what = f"{dim}, but without layers embeddings are the backbone's features: set it to {features}"
            raise UserError(f"method.projector.output_dim: {what}")
        head, same = options.predictor, {name: getattr(options.projector, name) for name in _NORM}
        fixed = {"output_dim": dim, **(same if head.norm == "same" else {})}
        self.projector = build_head(options.projector, features) if options.projector.layers else nn.Identity()
        self.predictor = build_head(head, dim, **fixed) if head.layers else nn.Identity()
        self.momentum_encoder = (
            MomentumEncoder(backbone=backbone, projector=self.projector) if options.momentum_encoder else None
        )
        self.queue = Queue(options.queue_size, dim) if options.negatives == "queue" else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def recipe(cls, options: MoCoOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """MoCo v2's views; with a preset those of its method."""
        methods: dict[str, type[Method]] = {"simclr": SimCLR, "byol": BYOL, "vicreg": VICReg}
        method = methods.get(options.preset, MoCoV2)
        return method.recipe(method.Options(), image_size, spec)

    @classmethod
    def defaults(cls, options: MoCoOptions, spec: BackboneSpec) -> DefaultSections:
        backbone = {"zero_init_residual": False}
        return {"optimizer": {**SGD, "lr": 0.5}, "schedule": {"name": "cosine"}, "backbone": backbone}

    @classmethod
    def minimum_images(cls, options: MoCoOptions) -> int:
        return 2 if options.negatives == "batch" or options.loss == "vic" else 1

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, the monitors of positive and negative pairs, and the first view's features. Raises
        UserError if there are not two views."""
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
        carry, means = {}, options.reduction == "mean"
        if self.queue is not None:
            kept = (1, 0) if both and means else (1,)
            carry = {f"keys{view}": sphere_rows(k[view].detach(), options.unit_sphere) for view in kept}
        factor = options.loss_factor * (1 if means else len(q))
        return Step(factor * loss, metrics, features=h[0].detach(), carry=carry)

    def _key(self, images: Tensor, z: list[Tensor], view: int) -> Tensor:
        """The key (N, E) of a view: the momentum encoder's, or the online projection."""
        if self.momentum_encoder is None:
            return z[view].detach() if self.options.stop_gradient else z[view]
        return encode_shuffled(self.momentum_encoder, images, 2 * self.steps + view, enabled=self.options.shuffle_bn)

    def _compare(self, query: Tensor, key: Tensor, own: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one direction and its monitors; `own` are the keys of the queries' own view."""
        options, sphere = self.options, self.options.unit_sphere
        tau = 1.0 if options.loss == "ip" else options.temperature
        if options.loss == "vic" or (options.loss == "ip" and options.negatives == "none"):
            q, k = sphere_rows(query, sphere), sphere_rows(key, sphere)
            if options.loss == "ip":  # half of BYOL's loss, with gradient to whichever of the two requires it
                return 1 - (q * k).sum(dim=1).mean(), mean_cosines([(query, key)])
            weights = (options.invariance, options.variance, options.covariance, options.variance_epsilon)
            loss, terms = vicreg_and_metrics((q, k), ((0, 1),), *weights)
            return loss, {**terms, **mean_cosines([(query, key)])}
        if self.queue is not None and options.loss == "ce" and sphere:
            # MoCo itself, among all the combinations: its loss keeps no logits.
            weight = negative_weight(options.eqco_alpha, options.queue_size)
            return queue_info_nce_and_metrics(query, key, self.queue.keys, tau, weight)
        if options.negatives == "batch":
            own = own if options.batch_negatives == "all" else None
            pairs = pair_logits(query, key, tau, own=own, unit_sphere=sphere, gather=options.gather_keys)
        else:
            negatives = key[:0] if self.queue is None else self.queue.keys
            pairs = pair_logits(query, key, tau, negatives=negatives, unit_sphere=sphere)
        if options.loss == "ce":
            counted = pairs.K + (options.negatives == "batch" and options.reduction == "sum")
            loss = contrast_ce(pairs, negative_weight(options.eqco_alpha, counted))
        else:
            loss = contrast_bce(pairs, options.reduction) if options.loss == "bce" else contrast_ip(pairs)
        # Without negatives, the batch's other images serve the monitors.
        return loss, mean_cosines([(query, key)]) if options.negatives == "none" else pairs.metrics

    def schedules(self) -> dict[str, StepFunction]:
        return {"momentum": self.options.momentum_schedule(self.run.total_steps)} if self.momentum_encoder else {}

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        if self.queue is not None:
            for each in carry:
                for keys in each.values():
                    self.queue.push(all_gather(keys))
        if self.momentum_encoder is not None:
            self.momentum_encoder.follow(
                backbone=self.backbone, projector=self.projector, value=self.options.momentum_at(progress)
            )
        self.steps.add_(1)
