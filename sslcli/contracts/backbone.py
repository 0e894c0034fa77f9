"""Contract of the group `sslcli.backbones`: image → feature vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from .options import WARN, Options


class BackboneOptions(Options):
    """Options that every built-in backbone has, and any other whose options inherit from it."""

    weights: Path | None = Field(default=None, json_schema_extra=WARN)
    """Start from the weights in this safetensors file: one that `ssl export backbone` wrote, or any other with the same
    names (a classifier in it is left out). Read once, when a run starts: not to resume it or to load what it made."""


@dataclass(frozen=True)
class BackboneSpec:
    """What others need to know of a backbone.

    Attributes:
        feature_dim: D of the pooled features.
        channels: image channels it takes.
        minimum_size: the smallest image side, in pixels, that it can take.
        size_multiple: image sides must be a multiple of this (a ViT's patch size; 1 for most).
        patch_size: side of a patch, for networks with tokens, else None.
    """

    feature_dim: int
    channels: int = 3
    minimum_size: int = 1
    size_multiple: int = 1
    patch_size: int | None = None


@dataclass
class Features:
    """What a backbone returns: `pooled` (N, D), and where it has any `tokens` (N, L, D) on a `grid` (rows, columns)."""

    pooled: Tensor
    tokens: Tensor | None = None
    grid: tuple[int, int] | None = None


class Backbone(nn.Module, ABC):
    """A network without a classifier. Called in one way only: `backbone(images, mask) -> Features`.

    Attributes:
        Options: the options' class.
        spec: see `BackboneSpec`; set by `__init__`.
    """

    Options: ClassVar[type[Options]] = Options
    spec: BackboneSpec

    @classmethod
    @abstractmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Backbone:
        """Builds the backbone with fresh weights, from torch's global generator.

        Weights that exist already are none of its business (see `published_state`): what is built here is filled with
        a trained backbone's weights as often as it is trained, without a file or a network at hand.

        Args:
            options: an instance of `Options`.
            channels: image channels.
            image_size: side in pixels of the (largest) views.

        Raises:
            UserError: if it cannot take such images.
        """

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Args:
        x: (N, C, H, W) float, normalized.
        mask: (N, L) bool, True = hidden, for masked methods; networks without tokens refuse it.
        """

    def published_state(self) -> dict[str, Tensor] | None:
        """Returns published weights to start from, if the options ask for such; None, the default, if not.

        Called once, when a run starts from scratch, and never when a backbone is resumed or loaded; may fetch them. The
        names are those of `export_state`; a classifier's may be among them.

        Raises:
            UserError: if they cannot be had.
        """
        return None

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under the names that other tools know, and the Python lines that load them.

        The lines build `model` and load `state` (a dict of tensors, already read) into it with `strict=True`. The
        default: the module's own names, loaded through `sslcli.load_backbone` (then the text is empty).
        """
        return dict(self.state_dict()), ""

    def import_state(self, state: dict[str, Tensor]) -> None:
        """Loads what `export_state` returned; raises RuntimeError where names or shapes differ."""
        self.load_state_dict(state, strict=True)


class BackboneProvider(ABC):
    """Many backbones under one entry point: `torchvision/resnet50` is the provider `torchvision`'s `resnet50`."""

    @classmethod
    @abstractmethod
    def names(cls) -> list[str]:
        """Lists what `get` knows."""

    @classmethod
    @abstractmethod
    def get(cls, name: str) -> type[Backbone]:
        """Returns the backbone class; raises KeyError for an unknown name."""
