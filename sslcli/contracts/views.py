"""Contract of the group `sslcli.augmentations`: view operations and presets.

A recipe is data: a list of views, each with a count, a size and an ordered list of operations. An operation works on
the whole batch, with separate random numbers for each sample. They are drawn outside of `apply`, on the CPU, from a
counter-based hash: so `apply` is a pure function of tensors with static shapes (it can be compiled), and worker
processes and devices use the same numbers.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, SerializeAsAny
from torch import Tensor

from .options import Options

#: Named tensors with one row per sample.
Parameters = dict[str, Tensor]


class Operation(ABC):
    """One augmentation.

    Attributes:
        Options: the options' class.
        channels: channel counts it can work on; None for any. Others are refused when the config is read.
        geometric: it turns source images (uint8, any size) into float images of the view's size. A view has exactly
            one such operation, the first.
        in_workers: a geometric operation that has only `apply_one`: no images are kept on the device, worker processes
            crop them all.
        draws: how many uniform numbers it needs per sample.
        drawn: names of options that only `parameters` and `source_side` read, such as a probability: views of one size
            whose operations differ in no other options are made together.
    """

    Options: ClassVar[type[Options]] = Options
    drawn: ClassVar[frozenset[str]] = frozenset()
    channels: ClassVar[frozenset[int] | None] = None
    geometric: ClassVar[bool] = False
    in_workers: ClassVar[bool] = False
    draws: int = 0

    def __init__(self, options: Any, size: int) -> None:
        """Args:
        options: an instance of `Options`.
        size: the side of the view in pixels.
        """
        self.options = options
        self.size = size

    @abstractmethod
    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        """Turns uniform numbers into parameters, on the CPU.

        Args:
            uniform: (N, `draws`) float64 in [0, 1).
            sizes: (N, 2) int64, height and width of the input images.

        Returns:
            tensors whose first dimension is N: all the randomness that `apply` uses.
        """

    @abstractmethod
    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Applies the operation to a batch.

        Args:
            images: (N, C, H, W): float32 in [0, 1]; for a geometric operation uint8 of the source's size.
            parameters: as `parameters` made them, on the images' device.

        Returns:
            (N, C, size, size) float32 in [0, 1].
        """

    def note(self, parameters: Parameters) -> str | None:
        """Returns the parameters of one sample (each without its first dimension) in a few characters, for pictures of
        views; None where nothing is done to it. By default single numbers, unless a single `chosen` is false."""
        numbers = {name: float(each) for name, each in parameters.items() if each.ndim == 0}
        if not numbers.pop("chosen", True):
            return None
        return " ".join(f"{each:.2g}" for each in numbers.values())

    def source_side(self) -> int | None:
        """Geometric operations only: the shortest side, in pixels, that a source needs for a view of full detail.

        Larger images may be decoded at a smaller size, not below this one. None: always decoded at full size.
        """
        return None

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        """Geometric operations only: one uint8 image (C, H, W) of any size → uint8 (C, size, size), in a worker.

        The parameters are one sample's: each tensor without its first dimension.
        """
        raise TypeError(f"{type(self).__name__} is not a geometric operation")


class ViewSpec(Options):
    """One kind of view: how many, their size, and their operations in order."""

    count: int = Field(default=1, ge=1, le=1000)
    """Number of views of this kind."""
    size: int = Field(ge=1, le=16384)
    """Side of the view in pixels."""
    operations: tuple[SerializeAsAny[OperationSpec], ...]
    """Operations in order; the first is the geometric one."""


class OperationSpec(Options):
    """An operation's name and its validated options, as plain data."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class PresetOptions(Options):
    """Options that every preset has. What `views` returns is changed by them afterward."""

    count: int | None = Field(default=None, ge=1, le=1000)
    """Number of views, not counting local ones; by default as published. Views of different kinds take turns."""
    strength: float | None = Field(default=None, ge=0)
    """Multiplies the brightness, contrast, saturation and hue of the color jitter, not how often it is applied; by
    default as published (1)."""
    size: int | None = Field(default=None, ge=1, le=16384)
    """Side of the views in pixels, which `views` gets; local ones are smaller. By default that of the dataset."""


class Preset:
    """A named recipe. It returns views as a config would list them (short keys allowed).

    Attributes:
        Options: the options' class, a subclass of `PresetOptions`.
        fixed: what `views` returns, for a preset whose views depend on nothing.
    """

    Options: ClassVar[type[Options]] = PresetOptions
    fixed: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def views(cls, options: Any, size: int) -> list[dict[str, Any]]:
        """Returns a list of views such as `{"count": 2, "crop_scale": [0.08, 1.0], "flip": 0.5}`.

        A view without `size` has the side `size`. `count` and `strength` change these views afterward.
        """
        if not cls.fixed:
            raise TypeError(f"the preset {cls.__name__} must define `views` or `fixed`")
        return copy.deepcopy(cls.fixed)


#: What `Method.recipe` returns: a `views:` section as a config would hold it, a mapping or a list of views.
RecipeSection = Mapping[str, Any] | Sequence[Mapping[str, Any]]
