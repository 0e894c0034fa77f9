"""The options of the workbench `moco`, the values that each preset gives them, and which of them are incompatible.

After untitled-ai's workbench; its study of batch norm in BYOL, and Richemond et al.'s, https://arxiv.org/abs/2010.10241,
are why the heads take any norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sslcli.modules.heads import AnyNormHeadOptions, LastNorm
from sslcli.modules.norms import NormName

from ._moco import KeyOptions
from .vicreg import VICRegWeights

#: What a preset sets, where that differs from the options' own defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "moco_v2": {"momentum": 0.999},
    "simclr": {
        "negatives": "batch",
        "both_views_as_queries": True,
        "views_together": True,
        "momentum_encoder": False,
        "stop_gradient": False,
        "temperature": 0.5,
        "projector": {"norm": "batch", "last_norm": "no_bias", "last_bias": False},
    },
    "byol": {
        "loss": "ip",
        "loss_factor": 4.0,
        "negatives": "none",
        "both_views_as_queries": True,
        "final_momentum": 1.0,
        "shuffle_bn": False,
        "projector": {"hidden_dim": 4096, "output_dim": 256, "norm": "batch"},
        "predictor": {"layers": 2, "hidden_dim": 4096, "norm": "batch"},
    },
    "vicreg": {
        "loss": "vic",
        "negatives": "none",
        "momentum_encoder": False,
        "stop_gradient": False,
        "unit_sphere": False,
        "projector": {"layers": 3, "hidden_dim": 8192, "output_dim": 8192, "norm": "batch", "last_bias": False},
    },
}


class MoCoPredictorOptions(AnyNormHeadOptions):
    """The predictor, after the projector of the queries only; its output has the embeddings' dimension."""

    layers: int = Field(default=0, ge=0)
    """Number of linear layers; 0: no predictor."""
    hidden_dim: int = Field(default=512, ge=1)
    """Width of the hidden layers."""
    norm: NormName = "none"
    """Norm after each hidden layer."""
    last_norm: LastNorm = "none"
    """Batch norm after the last layer: complete, without shift, without scale and shift, or none."""
    last_bias: bool = True
    """Whether the last linear layer has a bias; it has none where a batch norm follows."""


class MoCoProjectorOptions(MoCoPredictorOptions):
    """The projector, which the momentum encoder has too: linear–norm–ReLU, then a linear layer."""

    layers: int = Field(default=2, ge=1)
    """Number of linear layers."""
    hidden_dim: int | None = Field(default=None, ge=1)  # type: ignore[assignment]
    """Width of the hidden layers; null: the backbone's feature dimension."""
    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings that the loss compares."""


class MoCoOptions(KeyOptions, VICRegWeights):
    """Options of the workbench."""

    preset: Literal["none", "moco_v2", "simclr", "byol", "vicreg"] = "none"
    """Sets every other option (and the views, where the config has none) to this method's; those that you set yourself
    win. `none` is untitled-ai's MoCo on STL-10. Optimizer and schedule stay the config's."""
    loss: Literal["ce", "bce", "ip", "vic"] = "ce"
    """Cross-entropy of the positive pair among the negatives, binary cross-entropy of each pair by itself (their mean),
    1 − inner product of the positive pair, or VICReg's."""
    loss_factor: float = Field(default=1.0, gt=0)
    """Multiplies the loss; it can turn the mean over the pairs of `bce` into their sum."""
    negatives: Literal["queue", "batch", "none"] = "queue"
    """Source of the negative pairs: keys of earlier steps, the batch's other images, or no negatives."""
    batch_negatives: Literal["all", "other_view"] = "all"
    """With negatives from the batch: the 2N − 2 keys of all other images, or as in untitled-ai's code the N − 1 of the
    other view."""
    gather_keys: bool = True
    """With negatives from the batch, on several processes: the keys of all of them, or a process's own. A queue always
    takes all, since it must be the same everywhere."""
    both_views_as_queries: bool = False
    """Average over both directions. Off: view 1 is the query, view 2 the key."""
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
            raise ValueError(
                "loss 'ce' is always 0 without negatives: set negatives to queue or batch, or another loss"
            )
        if self.loss in ("ip", "vic") and self.negatives != "none":
            raise ValueError(
                f"loss {self.loss!r} does not use negatives, and they are {self.negatives!r}: set negatives to none, "
                "or loss to ce or bce"
            )
        if self.eqco_alpha is not None and self.loss != "ce":
            raise ValueError(f"eqco_alpha is a margin of loss 'ce', and loss is {self.loss!r}: leave it out")
        if self.loss == "vic" and not (self.invariance or self.variance or self.covariance):
            raise ValueError("loss 'vic' needs a weight above 0: invariance, variance or covariance")
        return self
