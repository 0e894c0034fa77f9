"""Views that are made together: each operation once for the samples of all of them, so a device has less to start.

A group is one kind of view, or adjacent kinds of one size that start with the same geometric operation. Two operations
are the same if they differ only in options that `apply` does not read (`Operation.drawn`). One that only some of the
kinds have is applied to their samples alone, and the rest of the pipeline goes on together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor

from sslcli.augmentations.flip import Flip
from sslcli.augmentations.resampling import Resampling
from sslcli.contracts.views import Operation, Parameters
from sslcli.modules import as_one_batch

from .kinds import Keys, ViewKind

#: A stage's number, the first and the last row (excluded) that go through it, and their parameters.
Work = list[tuple[int, int, int, Parameters]]
#: `ViewGroup.make`, or the same compiled.
Make = Callable[[list[Tensor], Work, Tensor, Tensor, bool, torch.memory_format], Tensor]


@dataclass
class Stage:
    """One operation of a group.

    Attributes:
        operation: the first kind's; `apply` of the others' is the same.
        of: the numbers of the kinds that have it, which are adjacent, each with the operation's index in the kind.
    """

    operation: Operation
    of: dict[int, int]


class ViewGroup:
    """Kinds of views that are made together."""

    def __init__(self, kinds: list[ViewKind], stages: list[Stage]) -> None:
        self.kinds, self.stages = kinds, stages
        self.size, self.channels = kinds[0].spec.size, kinds[0].channels
        counts = [kind.spec.count for kind in kinds]
        self._starts = [sum(counts[:number]) for number in range(len(counts) + 1)]  # of each kind among the views

    def __len__(self) -> int:
        return self._starts[-1]

    def draw(self, keys: Keys, first: int, sizes: Tensor | None, crops_only: bool) -> list[Parameters]:
        """Returns the parameters of each stage: rows for every sample of its first view, of its second, and so on.

        `first` is the index of the group's first view among all views; the others are those of `ViewMaker.draw`.
        """
        starts = self._starts
        drawn = [kind.draw(keys, first + starts[n], sizes, crops_only) for n, kind in enumerate(self.kinds)]
        each = [[drawn[kind][index] for kind, index in stage.of.items()] for stage in self.stages]
        return [{name: torch.cat([values[name] for values in parts]) for name in parts[0]} for parts in each]

    def apply(
        self,
        make: Make,
        sources: Sequence[Tensor],
        parameters: list[Parameters],
        shift: Tensor,
        scale: Tensor,
        cropped: bool,
        memory_format: torch.memory_format,
        most: int,
    ) -> list[Tensor]:
        """Makes the views of the group: slices of one tensor, one after another.

        Args:
            make: `make`, or the same compiled.
            sources: for each view (N, C, H, W) uint8.
            parameters: those of each stage, on the images' device.
            shift: as for `make`.
            scale: as for `make`.
            cropped: as for `make`.
            memory_format: of the result.
            most: samples to make at a time at most: of several whole views, or else parts of one.

        Returns:
            for each view (N, C, size, size) float32, normalized.
        """
        count = len(sources[0])
        total = count * len(self)

        def run(start: int, stop: int, memory_format: torch.memory_format) -> Tensor:
            rows = slice(start % count, start % count + stop - start)
            part = [source[rows] for source in sources[start // count : math.ceil(stop / count)]]
            return make(part, self._work(parameters, count, start, stop), shift, scale, cropped, memory_format)

        if most >= count:
            size = most // count * count
            parts = [run(start, min(start + size, total), memory_format) for start in range(0, total, size)]
        else:
            shape = (total, self.channels, self.size, self.size)
            parts = [torch.empty(shape, device=sources[0].device, memory_format=memory_format)]
            for first in range(0, total, count):
                for start in range(first, first + count, most):
                    stop = min(start + most, first + count)
                    parts[0][start:stop] = run(start, stop, torch.contiguous_format)
        return [part[start : start + count] for part in parts for start in range(0, len(part), count)]

    def make(
        self,
        sources: list[Tensor],
        work: Work,
        shift: Tensor,
        scale: Tensor,
        cropped: bool,
        memory_format: torch.memory_format,
    ) -> Tensor:
        """Makes some samples of some views: a pure function of tensors, without branches on their values.

        Args:
            sources: for each of these views the samples' images, uint8 (n, C, H, W); if `cropped`, the results of the
                geometric operation.
            work: what is done to which of the M samples in all.
            shift: what is added to a pixel in the end; broadcasts with (C, 1, 1).
            scale: what it is multiplied with before.
            cropped: the geometric operation has been applied already, but not a flip after it.
            memory_format: of the result.

        Returns:
            (M, C, size, size) float32.
        """
        images = as_one_batch(sources)
        steps = [(self.stages[number].operation, start, stop, values) for number, start, stop, values in work]
        operation, start, stop, values = steps.pop(0)
        if cropped:
            images = images / 255
        else:
            flips = bool(steps) and isinstance(steps[0][0], Flip) and steps[0][1:3] == (start, stop)
            if flips and isinstance(operation, Resampling):
                values = {**values, "mirror": steps.pop(0)[3]["chosen"]}
            images = operation.apply(images, values)
        for operation, start, stop, values in steps:
            changed = operation.apply(images[start:stop], values)
            whole = stop - start == len(images)
            images = changed if whole else torch.cat([images[:start], changed, images[stop:]])
        return torch.addcmul(shift, images, scale).contiguous(memory_format=memory_format)

    def _work(self, parameters: list[Parameters], count: int, start: int, stop: int) -> Work:
        """What is done to the rows `start` to `stop` of all views, of `count` samples each."""
        work: Work = []
        for number, (stage, values) in enumerate(zip(self.stages, parameters, strict=True)):
            first, last = min(stage.of), max(stage.of) + 1
            begin, end = count * self._starts[first], count * self._starts[last]
            low, high = max(begin, start), min(end, stop)
            if low < high:
                rows = slice(low - begin, high - begin)
                work.append((number, low - start, high - start, {name: value[rows] for name, value in values.items()}))
        return work


def grouped(kinds: Sequence[ViewKind]) -> list[ViewGroup]:
    """Returns groups of adjacent kinds, in order."""
    groups: list[tuple[list[ViewKind], list[Stage]]] = []
    for kind in kinds:
        together, stages = groups[-1] if groups else ([], [])
        if stages and together[0].spec.size == kind.spec.size and _key(stages[0].operation) == _key(kind.operations[0]):
            stages[:] = _merged(stages, kind, len(together))
            together.append(kind)
        else:
            groups.append(([kind], [Stage(operation, {0: n}) for n, operation in enumerate(kind.operations)]))
    return [ViewGroup(*group) for group in groups]


def _merged(stages: list[Stage], kind: ViewKind, number: int) -> list[Stage]:
    """Adds a kind's operations, in order, to the stages of those before it; `number` is its place in the group."""
    # A stage that the kind before it lacks cannot be shared, since its rows would not be adjacent.
    ours = [_key(stage.operation) if number - 1 in stage.of else None for stage in stages]
    theirs = [_key(operation) for operation in kind.operations]
    result: list[Stage] = []
    for what, i, j, k, m in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if what == "equal":
            result += [Stage(s.operation, {**s.of, number: n}) for s, n in zip(stages[i:j], range(k, m), strict=True)]
        else:
            result += stages[i:j]
            result += [Stage(kind.operations[n], {number: n}) for n in range(k, m)]
    return result


def _key(operation: Operation) -> tuple[type[Operation], str]:
    """What decides about `apply`."""
    options = {name: value for name, value in operation.options.plain().items() if name not in operation.drawn}
    return type(operation), json.dumps(options, sort_keys=True)
