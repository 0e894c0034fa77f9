"""What a method gets: the views of a batch of images, and random numbers that depend on nothing but the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sslcli.randomness import uniform

#: Set the numbers that methods draw apart from those of views, and of each other.
_OF_IMAGES, _OF_STEPS = 0x6D6574686F64, 0x73746570
_BELOW_ONE = 1 - 2**-24


@dataclass
class View:
    """One augmented version of each image: (N, C, H, W) float, normalized, on the device."""

    image: Tensor


@dataclass(frozen=True)
class DrawKeys:
    """What the random numbers of a batch are functions of.

    Attributes:
        seed: the run's.
        step: index of the optimizer step.
        epoch: of the images.
        positions: (N,) int64 on the CPU, the images' places in the order of the epoch; None: their index.
    """

    seed: int = 0
    step: int = 0
    epoch: int = 0
    positions: Tensor | None = None
    #: `step` and `epoch` as tensors, on whose values a compiled forward pass does not depend.
    step_tensor: Tensor = field(init=False, repr=False, compare=False)
    epoch_tensor: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_tensor", torch.tensor(self.step))
        object.__setattr__(self, "epoch_tensor", torch.tensor(self.epoch))


@dataclass
class Batch:
    """What a method's `forward` gets.

    Random numbers come from `uniform` and `shared_uniform`, not from torch's generator, wherever a run must be the same
    on other numbers of processes and micro-batches.

    Attributes:
        views: in the recipe's order.
        labels: (N,) int64 or None.
        index: (N,) int64 on the CPU, the images' indices in the dataset.
        schedule: 0-dim float tensors on the device, the values of `Method.schedules()` at this step, by name.
        keys: see `DrawKeys`.
    """

    views: list[View]
    labels: Tensor | None
    index: Tensor
    schedule: Mapping[str, Tensor]
    keys: DrawKeys = field(default_factory=DrawKeys)

    def uniform(self, count: int, stream: int = 0) -> Tensor:
        """Returns (N, count) float32 numbers in [0, 1) on the device, for each image its own.

        They are a function of seed, epoch, the image's place in it, and `stream`, so that neither the number of
        processes nor that of micro-batches changes them, and a resumed run draws them again.

        Args:
            count: numbers for each image.
            stream: another number gives independent ones.
        """
        keys, positions = self.keys, self.index if self.keys.positions is None else self.keys.positions
        return self._sent(uniform(keys.seed, _OF_IMAGES, keys.epoch_tensor, positions, stream, count=count))

    def shared_uniform(self, count: int, stream: int = 0) -> Tensor:
        """Returns (count,) float32 numbers in [0, 1) on the device, the same for all images of a step, on all processes
        and in all micro-batches: a function of seed, step and `stream`."""
        return self._sent(uniform(self.keys.seed, _OF_STEPS, self.keys.step_tensor, stream, count=count))

    def _sent(self, numbers: Tensor) -> Tensor:
        device = self.views[0].image.device
        numbers = numbers.float().clamp_(max=_BELOW_ONE)  # rounded to float32 the largest would be 1
        return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)
