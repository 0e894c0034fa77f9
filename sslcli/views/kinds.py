"""One kind of view: the operations of a `ViewSpec`, and their random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.views import Operation, Parameters, ViewSpec
from sslcli.plugins import load
from sslcli.randomness import hash_bits, uniform

#: The seed, the epoch and the samples' positions (N,).
Keys = tuple[int, int, Tensor]


class ViewKind:
    """One `ViewSpec` with its operations."""

    def __init__(self, spec: ViewSpec, channels: int) -> None:
        self.spec = spec
        self.channels = channels
        self.operations = [_operation(item.name, item.options, spec.size, channels) for item in spec.operations]

    def draw(self, keys: Keys, first: int, sizes: Tensor | None, crops_only: bool) -> list[Parameters]:
        """Returns the parameters of each operation, with a row for each sample of each view, one view after another.

        `first` is the index of this kind's first view among all views; the others are those of `ViewMaker.draw`.
        """
        seed, epoch, positions = keys
        views = torch.arange(first, first + self.spec.count).view(-1, 1)
        view_sizes = torch.full((self.spec.count * len(positions), 2), self.spec.size)
        drawn_for = hash_bits(seed, epoch, positions, views)  # what the keys of all operations begin with
        result: list[Parameters] = []
        for index, operation in enumerate(self.operations):
            parameters: Parameters = {}
            if (sizes is not None) if operation.geometric else not crops_only:
                numbers = uniform(index, count=operation.draws, after=drawn_for).flatten(0, 1)
                incoming = sizes.repeat(self.spec.count, 1) if operation.geometric and sizes is not None else view_sizes
                parameters = operation.parameters(numbers, incoming)
            result.append(parameters)
        return result


def _operation(name: str, options: dict[str, Any], size: int, channels: int) -> Operation:
    cls = load("augmentations", name)
    if cls.channels is not None and channels not in cls.channels:
        needed = " or ".join(str(count) for count in sorted(cls.channels))
        raise UserError(
            f"views: {name!r} needs images with {needed} channels, but these have {channels}; remove it ({name}: 0)"
        )
    operation: Operation = cls(cls.Options.parse(options), size)
    return operation
