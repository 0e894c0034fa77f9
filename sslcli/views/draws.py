"""The random parameters of a batch's views, in one buffer, so a single transfer moves them to a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslcli.contracts.views import Parameters

#: Every tensor starts at a multiple of this many bytes, because compiled kernels need aligned inputs.
_ALIGNMENT = 64


class Slot(NamedTuple):
    """Where a tensor is in the buffer."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, buffer: Tensor) -> Tensor:
        stop = self.start + math.prod(self.shape) * self.dtype.itemsize
        return buffer[self.start : stop].view(self.dtype).view(self.shape)


class Draws:
    """Parameters of every operation of every view.

    Attributes:
        values: `values[group][stage]` are the parameters of an operation (`groups.ViewGroup`), with rows for every
            sample of its first view, of its second, and so on; all tensors share one buffer.
    """

    def __init__(self, buffer: Tensor, slots: list[list[dict[str, Slot]]]) -> None:
        self._buffer = buffer
        self._slots = slots
        self.values: list[list[Parameters]] = [
            [{name: slot.read(buffer) for name, slot in stage.items()} for stage in group] for group in slots
        ]

    @classmethod
    def pack(cls, values: Sequence[Sequence[Parameters]]) -> Draws:
        """Copies parameters on the CPU, `values[group][stage]`, into one buffer."""
        end = 0

        def slot(value: Tensor) -> Slot:
            nonlocal end
            start, end = end, end + math.ceil(value.nbytes / _ALIGNMENT) * _ALIGNMENT
            return Slot(start, value.dtype, tuple(value.shape))

        slots = [[{name: slot(value) for name, value in stage.items()} for stage in group] for group in values]
        draws = cls(torch.zeros(end, dtype=torch.uint8), slots)
        for group, packed in zip(values, draws.values, strict=True):
            for stage, tensors in zip(group, packed, strict=True):
                for name, value in stage.items():
                    tensors[name].copy_(value)
        return draws

    def to(self, device: torch.device | str) -> Draws:
        """Returns the same on a device; a copy from the CPU to CUDA is asynchronous."""
        device = torch.device(device)
        if device.type == self._buffer.device.type and device.index in (None, self._buffer.device.index):
            return self
        buffer = self._buffer
        if device.type == "cuda" and buffer.device.type == "cpu":
            buffer = buffer.pin_memory()
        return Draws(buffer.to(device, non_blocking=True), self._slots)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles the buffer once, not again for every tensor in it.
        return type(self), (self._buffer, self._slots)
