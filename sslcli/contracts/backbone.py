"""Contract of the group `sslcli.backbones`: image → feature vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from .options import WARN, Options


class BackboneOptions(Options):
    """Options that every built-in backbone has, and any other whose options inherit from it."""

    weights: Path | None = Field(default=None, json_schema_extra=WARN)
    """Start from the weights in this safetensors file: one that `ssl export backbone` wrote, or any other with the same
    names (a classifier in it is ignored). Read only when a run starts, not when it is resumed or its result loaded."""


@dataclass(frozen=True)
class BackboneSpec:
    """What the rest of the program knows about a backbone.

    Attributes:
        feature_dim: D of the pooled features.
        channels: image channels it takes.
        minimum_size: the smallest image side that it accepts, in pixels.
        size_multiple: image sides must be a multiple of this (a ViT's patch size; 1 for most networks).
        patch_size: side of a patch for networks with tokens, else None.
        maskable: its `forward` takes masks and subsets of patches.
    """

    feature_dim: int
    channels: int = 3
    minimum_size: int = 1
    size_multiple: int = 1
    patch_size: int | None = None
    maskable: bool = False


@dataclass
class Features:
    """What a backbone returns.

    Attributes:
        pooled: (N, D).
        tokens: (N, L, E) the patches, or the pixels of the last map, row by row; None for networks without.
        grid: rows and columns of the tokens; None where `keep` has left some out.
        layers: the class token (N, E), or None, and the tokens (N, L, E) of the last layers that were asked for, the
            last one at the end; empty for networks without.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    grid: tuple[int, int] | None = None
    layers: tuple[tuple[Tensor | None, Tensor], ...] = ()


class Backbone(nn.Module, ABC):
    """A network without a classifier, called as `backbone(images) -> Features`, and by methods that hide patches with
    the other arguments of `forward`.

    Attributes:
        Options: the options' class.
        spec: see `BackboneSpec`; set by `__init__`.
    """

    Options: ClassVar[type[Options]] = Options
    spec: BackboneSpec

    @classmethod
    @abstractmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Backbone:
        """Builds the backbone with random weights, from torch's global generator.

        It does not load any weights (see `published_state`): a backbone is also built to be filled from a checkpoint,
        where neither the original weights nor a network connection may be available.

        Args:
            options: an instance of `Options`.
            channels: image channels.
            image_size: side in pixels of the (largest) views.

        Raises:
            UserError: if it does not accept such images.
        """

    @classmethod
    def fit_options(cls, options: Any, image_size: int, weights: Mapping[str, Tensor] | None = None) -> Any:
        """Returns the options with what each `auto` comes to; by default as they are.

        Runs, checkpoints and cards hold these, so that a network is built again as it was. `build` and `describe` take
        options with `auto`, too.

        Args:
            options: an instance of `Options`.
            image_size: side in pixels of the (largest) views.
            weights: to be loaded into the network, under the names of `export_state`; None: those that the options
                name, if they do.
        """
        return options

    @classmethod
    def describe(cls, options: Any, channels: int, image_size: int) -> BackboneSpec:
        """Returns the `spec` of what `build` would build, for methods that choose views and settings by it.

        By default the network is built without memory for its weights, on torch's device `meta`; if it cannot be, with
        it. Torch's random state stays as it is.

        Raises:
            UserError: as `build`.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    return cls.build(options, channels, image_size).spec
            except Exception:  # whatever cannot be done without values
                return cls.build(options, channels, image_size).spec

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns features. A network that is not `maskable` raises UserError for a mask or a subset.

        Args:
            x: (N, C, H, W) float, normalized.
            mask: (N, L) bool, True = hidden: the patch's embedding is replaced by `mask_token`.
            mask_token: (D,) or (1, 1, D), a parameter of the method; given if and only if `mask` is.
            keep: (N, K) int64: only these patches are computed, in this order, each at its own position.
            layers: how many of the last layers `Features.layers` has, behind the final norm where there is one: blocks
                of a transformer, stages of a ResNet. A network that has none, or not so many, raises UserError for more
                than 1.
        """

    def layer_modules(self) -> Sequence[nn.Module]:
        """Returns the layers that `forward` counts (blocks of a transformer, stages of a ResNet), the first one first;
        empty, the default, for a network that has none to tell apart. Layer-wise learning-rate decay goes by them."""
        return ()

    def published_state(self) -> dict[str, Tensor] | None:
        """Returns published weights to start from if the options ask for them; None, the default, otherwise.

        Called once when a new run starts, never when a run is resumed or a backbone loaded; may download them. The
        names are those of `export_state`; extra entries (a classifier's) are ignored.

        Raises:
            UserError: if they cannot be loaded.
        """
        return None

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under the names that other tools use, and Python lines that load them.

        The lines build `model` and load `state` (a dict of tensors, read already) into it with `strict=True`. By
        default the names are the module's own and the text is empty: the file is then for `sslcli.load_backbone`.
        """
        return dict(self.state_dict()), ""

    def import_state(self, state: dict[str, Tensor]) -> None:
        """Loads what `export_state` returned; raises RuntimeError if names or shapes differ."""
        self.load_state_dict(state, strict=True)


class BackboneProvider(ABC):
    """Many backbones under one entry point: `torchvision/resnet50` is the provider `torchvision`'s `resnet50`."""

    @classmethod
    @abstractmethod
    def names(cls) -> list[str]:
        """Lists the names that `get` accepts."""

    @classmethod
    @abstractmethod
    def get(cls, name: str) -> type[Backbone]:
        """Returns the backbone class; raises KeyError for an unknown name."""
