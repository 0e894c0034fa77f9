"""The MLP heads that exist only during pre-training: projectors and predictors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from sslcli.contracts.options import Options

from .norms import NormName, StandardizedLinear, build_norm

#: What a contrastive projector may have after its linear layers; `mlp` itself knows every `NormName`.
Norm = Literal["batch", "none"]
#: What stands after the last linear layer: nothing, or a batch norm that is complete, without β, or without γ and β.
LastNorm = Literal["none", "full", "no_bias", "no_affine"]


class ProjectorOptions(Options):
    """Options of an MLP projector."""

    layers: int = Field(default=2, ge=1)
    """Number of linear layers."""
    hidden_dim: int | None = Field(default=None, ge=1)
    """Width of the hidden layers; null: the backbone's feature dimension."""
    output_dim: int = Field(default=128, ge=1)
    """Dimension of the embeddings that the loss compares."""
    norm: Norm = "batch"
    """Batch norm after the linear layers, or none."""


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
    weight_standardization: bool = False,
) -> nn.Sequential:
    """Builds `layers` linear layers with ReLU between them: (N, input_dim) → (N, output_dim).

    A linear layer that a batch norm follows has no bias, since the norm would take it away again.

    Args:
        input_dim: dimension of the features that come in.
        hidden_dim: width between the layers; unused with one layer.
        output_dim: dimension of the result.
        layers: number of linear layers, at least 1.
        norm: what follows each hidden linear layer.
        last_norm: what follows the last one.
        last_bias: whether the last linear layer has a bias; ignored where a batch norm follows.
        groups: how many groups the norm `group` makes.
        weight_standardization: whether every linear layer is a `StandardizedLinear`.

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
        if (layer := build_norm(norm, hidden_dim, groups=groups)) is not None:
            parts.append(layer)
        parts.append(nn.ReLU(inplace=True))
        width = hidden_dim
    parts.append(linear(width, output_dim, bias=last_bias and last_norm == "none"))
    if last_norm != "none":
        parts.append(_last_batch_norm(output_dim, last_norm))
    return nn.Sequential(*parts)


def contrastive_projector(feature_dim: int, options: ProjectorOptions) -> nn.Sequential:
    """Builds the projector of the contrastive methods: (N, feature_dim) → (N, options.output_dim).

    As SimCLR has it: with batch norm one stands behind every layer, the last without β; the last linear layer never
    has a bias.

    Args:
        feature_dim: D of the backbone, and the width of the hidden layers where the options have none.
        options: what to build.
    """
    return mlp(
        feature_dim,
        options.hidden_dim or feature_dim,
        options.output_dim,
        options.layers,
        norm=options.norm,
        last_norm="no_bias" if options.norm == "batch" else "none",
        last_bias=False,
    )


def hidden_layers(input_dim: int, hidden_dim: int, layers: int, *, norm: NormName = "batch") -> nn.Sequential:
    """Builds the first hidden layers of `mlp`, up to the ReLU of the last of them: (N, input_dim) → (N, hidden_dim)."""
    return mlp(input_dim, hidden_dim, hidden_dim, layers + 1, norm=norm)[:-1]


def split_head(head: nn.Sequential, layers: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Cuts an MLP behind the ReLU of its hidden layer number `layers`, counted from 1.

    The parts hold the head's own modules, under the names (numbers) that they have in it.

    Raises:
        ValueError: if it has fewer hidden layers, or `layers` is less than 1.
    """
    ends = [place + 1 for place, part in enumerate(head) if isinstance(part, nn.ReLU)]
    if not 1 <= layers <= len(ends):
        raise ValueError(f"cannot cut behind hidden layer {layers} of a head that has {len(ends)}")
    return head[: ends[layers - 1]], head[ends[layers - 1] :]


def _last_batch_norm(dim: int, kind: LastNorm) -> nn.BatchNorm1d:
    batch_norm = nn.BatchNorm1d(dim, affine=kind != "no_affine")
    if kind == "no_bias":
        # No parameter at all: a frozen zero would still be saved, and `convert_sync_batchnorm` keeps a missing one.
        batch_norm.register_parameter("bias", None)
    return batch_norm
