"""The MLP heads that exist only during pre-training: projectors and predictors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from sslcli.contracts.options import Options

from .norms import NormName, StandardizedLinear, build_norm

#: The norms of most methods' heads; `mlp` itself knows every `NormName`.
Norm = Literal["batch", "none"]
RELU = partial(nn.ReLU, inplace=True)
#: What follows the last linear layer: nothing, or a batch norm that is complete, without β, or without γ and β.
LastNorm = Literal["none", "full", "no_bias", "no_affine"]


class ProjectorOptions(Options):
    """Options of an MLP projector."""

    layers: int = Field(default=2, ge=1, le=100)
    """Number of linear layers."""
    hidden_dim: int | None = Field(default=None, ge=1)
    """Width of the hidden layers; null: the backbone's feature dimension."""
    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings that the loss compares."""
    norm: Norm = "batch"
    """Batch norm after the linear layers, or none."""
    last_bias: bool = False
    """Whether the last linear layer has a bias; with batch norm it has none, since one follows."""


class WideProjectorOptions(Options):
    """The projector of Barlow Twins and VICReg: linear–BN–ReLU, then a plain linear layer; with batch norm no layer has
    a bias."""

    layers: int = Field(default=3, ge=1, le=100)
    """Number of linear layers."""
    hidden_dim: int = Field(default=8192, ge=1)
    """Width of the hidden layers."""
    output_dim: int = Field(default=8192, ge=1)
    """Dimension of the embeddings; the loss benefits from a large one."""
    norm: Norm = "batch"
    """Batch norm after each hidden layer, or none."""


class AnyNormHeadOptions(Options):
    """A head that takes any norm: linear–norm–ReLU, then a plain linear layer."""

    layers: int = Field(default=2, ge=1, le=100)
    """Number of linear layers."""
    hidden_dim: int = Field(default=4096, ge=1)
    """Width of the hidden layers."""
    norm: NormName = "batch"
    """Norm after each hidden layer."""
    groups: int = Field(default=32, ge=1)
    """Number of groups of the norm `group`."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variances by the norm."""
    norm_momentum: float = Field(default=0.1, gt=0, le=1)
    """Share of a batch's statistics in the update of the running ones, for `batch` and `batch_renorm`."""
    weight_standardization: bool = False
    """Standardize every row of a layer's weights to mean 0 and variance 1/fan-in before use."""
    standardize_last: bool = True
    """With `weight_standardization`: the last layer's too; false: only the hidden layers', as in untitled-ai's code."""
    last_bias: bool = False
    """Whether the last linear layer has a bias: deepmind's has none, lightly's, solo-learn's and untitled-ai's have."""

    legacy: ClassVar[Mapping[str, Any]] = {"last_bias": True}

    @model_validator(mode="after")
    def _momentum_needs_running_statistics(self) -> Self:
        if self.norm_momentum != 0.1 and self.norm in ("none", "layer", "group"):
            raise ValueError(f"norm_momentum: norm {self.norm!r} has no running statistics: leave it out")
        return self


def mlp(
    input_dim: int,
    hidden_dim: int,
    output_dim: int,
    layers: int,
    *,
    norm: NormName = "batch",
    last_norm: LastNorm = "none",
    last_bias: bool = True,
    groups: int = 32,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    weight_standardization: bool = False,
    standardize_last: bool = True,
    activation: Callable[[], nn.Module] = RELU,
) -> nn.Sequential:
    """Builds `layers` linear layers with an activation between them: (N, input_dim) → (N, output_dim).

    A linear layer that a batch norm follows has no bias, since the norm would cancel it.

    Args:
        input_dim: dimension of the features that come in.
        hidden_dim: width between the layers; unused with one layer.
        output_dim: dimension of the result.
        layers: number of linear layers, at least 1.
        norm: what follows each hidden linear layer.
        last_norm: what follows the last one.
        last_bias: whether the last linear layer has a bias; ignored where a batch norm follows.
        groups: number of groups of the norm `group`.
        norm_eps: eps of the norms after hidden layers.
        norm_momentum: momentum of their running statistics.
        weight_standardization: whether every linear layer is a `StandardizedLinear`.
        standardize_last: whether the last one is, too.
        activation: makes what follows each hidden linear layer and its norm.

    Raises:
        ValueError: if there is no layer.
        UserError: if `groups` do not divide `hidden_dim`.
    """
    if layers < 1:
        raise ValueError(f"an MLP needs at least one layer, not {layers}")
    linear = StandardizedLinear if weight_standardization else nn.Linear
    hidden_bias = norm not in ("batch", "batch_renorm")
    parts: list[nn.Module] = []
    width = input_dim
    for _ in range(layers - 1):
        parts.append(linear(width, hidden_dim, bias=hidden_bias))
        if (layer := build_norm(norm, hidden_dim, groups=groups, eps=norm_eps, momentum=norm_momentum)) is not None:
            parts.append(layer)
        parts.append(activation())
        width = hidden_dim
    last = linear if standardize_last else nn.Linear
    parts.append(last(width, output_dim, bias=last_bias and last_norm == "none"))
    if last_norm != "none":
        parts.append(nn.BatchNorm1d(output_dim, affine=last_norm != "no_affine"))
        if last_norm == "no_bias":
            # No parameter at all: a frozen zero would still be saved, and `convert_sync_batchnorm` keeps a missing one.
            parts[-1].register_parameter("bias", None)
    return nn.Sequential(*parts)


def build_head(options: Options, input_dim: int, **fixed: Any) -> nn.Sequential:
    """Builds the `mlp` that a head's options describe: (N, input_dim) → (N, output_dim).

    Args:
        options: fields named like `mlp`'s parameters; a `hidden_dim` of None is as wide as the input.
        input_dim: dimension of the features that come in.
        fixed: parameters of `mlp` that are no options of this head, or that replace them.

    Raises:
        ValueError, UserError: as `mlp`.
    """
    values: dict[str, Any] = {**dict(options), **fixed}
    values["hidden_dim"] = values["hidden_dim"] or input_dim
    return mlp(input_dim, **values)


def contrastive_projector(options: ProjectorOptions, feature_dim: int) -> nn.Sequential:
    """Builds the projector of the contrastive methods: (N, feature_dim) → (N, options.output_dim).

    As in SimCLR: batch norm, where there is one, follows every layer, the last without β.
    """
    return build_head(options, feature_dim, last_norm="no_bias" if options.norm == "batch" else "none")
