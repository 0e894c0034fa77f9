"""Makes the views of a batch: draws the parameters of every operation and applies the operations in order.

Draws are made on the CPU and are a function of (seed, epoch, position, view, operation); applying them is a pure
function of tensors with static shapes, on any device, eager or compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.source import SourceBatch
from sslcli.contracts.views import Parameters, ViewSpec
from sslcli.phases import phase

from .draws import Draws
from .groups import Make, grouped
from .kinds import ViewKind
from .normalize import shift_and_scale

#: Numbers that eager code on a CPU processes at once, so that an operation finds its input in the cache.
_CHUNK = 1 << 19
#: Numbers up to which other devices process several views at once. A kernel reads and writes so many in some .1 ms on
#: an H100, ten times what it takes to start one, so that more at once would gain nothing and take more memory.
_AT_ONCE = 1 << 25


class ViewMaker:
    """Makes all views of a batch. Picklable, for worker processes; compiled code is not part of the pickle.

    Attributes:
        kinds: one `ViewKind` per spec.
        groups: the kinds that are made together, in order.
        sizes: the side of every view (a spec with `count: 2` has two).
        later: where views change in a run, the steps from which on others make them, ascending, and these.
    """

    def __init__(
        self, views: Sequence[ViewSpec], channels: int, mean: Sequence[float], std: Sequence[float], seed: int
    ) -> None:
        """Args:
        views: the recipe, validated already: one geometric operation first, names and options that exist.
        channels: number of image channels.
        mean: per channel, for images in [0, 1].
        std: likewise.
        seed: the run's.

        Raises:
            UserError: if an operation cannot take this number of channels.
        """
        self.kinds = [ViewKind(spec, channels) for spec in views]
        self.groups = grouped(self.kinds)
        self.sizes = [group.size for group in self.groups for _ in range(len(group))]
        self._seed = seed
        self._affine = shift_and_scale(mean, std, torch.device("cpu"))
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._compiled: dict[int, Make] = {}
        self.later: list[tuple[int, ViewMaker]] = []

    def at(self, step: int) -> ViewMaker:
        """Returns what makes the views of a step: a function of its index alone."""
        return next((maker for begin, maker in reversed(self.later) if step >= begin), self)

    @property
    def phases(self) -> list[ViewMaker]:
        """What makes the views of each phase of a run, in order: this one alone where they do not change."""
        return [self, *(maker for _, maker in self.later)]

    @property
    def in_workers(self) -> bool:
        """Whether some of these views can be made only image by image, in worker processes."""
        return any(kind.operations[0].in_workers for kind in self.kinds)

    def __str__(self) -> str:
        """`2 of 224 px, 6 of 96 px`."""
        return ", ".join(f"{self.sizes.count(size)} of {size} px" for size in dict.fromkeys(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_device": {}, "_compiled": {}}

    def compile(self, mode: str | None = None, below: int | None = None) -> None:
        """Makes `apply` compile each group of views at its first use.

        Args:
            mode: that of `torch.compile`; `reduce-overhead` replays CUDA graphs.
            below: only views below this size in pixels are compiled.
        """
        self._compiled = {
            number: torch.compile(group.make, fullgraph=True, dynamic=False, mode=mode)
            for number, group in enumerate(self.groups)
            if below is None or group.size < below
        }

    def go_eager(self) -> None:
        """Undoes `compile`."""
        self._compiled = {}

    def draw(self, epoch: int, positions: Tensor, sizes: Tensor | None, crops_only: bool = False) -> Draws:
        """Draws the parameters of every operation of every view; they do not depend on the batch a sample is in.

        Args:
            epoch: counted from 0.
            positions: (N,) int64, the samples' positions in the epoch's order.
            sizes: (N, 2), height and width of the source images; None if workers have cropped them: the geometric
                parameters are left out.
            crops_only: draw only the geometric parameters, for `crop_one`.
        """
        values: list[list[Parameters]] = []
        first = 0
        for group in self.groups:
            values.append(group.draw((self._seed, epoch, positions), first, sizes, crops_only))
            first += len(group)
        return Draws.pack(values)

    def crop_one(self, image: Tensor, draws: Draws, row: int = 0) -> list[Tensor]:
        """Applies the geometric operation of every view to one image, in a worker; a flip is left to `apply`.

        Args:
            image: (C, H, W) uint8, of any size.
            draws: those of the geometric operations.
            row: index of the image's sample in `draws`.

        Returns:
            for each view (C, size, size) uint8.
        """
        crops = []
        for group, (parameters, *_) in zip(self.groups, draws.values, strict=True):
            for view in range(len(group)):
                own = {name: value[view * len(value) // len(group) + row] for name, value in parameters.items()}
                crops.append(group.stages[0].operation.apply_one(image, own))
        return crops

    def make(self, batch: SourceBatch, memory_format: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
        """Returns the views of a batch as a method receives them, on its device: for each (N, C, size, size)."""
        sizes = None
        if not batch.cropped:
            sizes = torch.tensor([batch.images[0].shape[-2:]]).expand(len(batch.index), 2)
        with phase("views"):
            draws = self.draw(batch.epoch, batch.positions, sizes)
            with phase("transfer"):
                draws = draws.to(batch.images[0].device)
            return self.apply(batch.images, draws, batch.cropped, memory_format)

    def notes(self, batch: SourceBatch, sizes: Tensor) -> list[list[str]]:
        """Returns what is done to each image of a batch, by view: `crop 120 x 90 at 3, 7 · flip · blur 0.8`.

        `sizes` are those of the source images, (N, 2) height and width.
        """
        found: list[list[str]] = []
        for kind in self.kinds:
            drawn = kind.draw((self._seed, batch.epoch, batch.positions), len(found), sizes, crops_only=False)
            names = [operation.name for operation in kind.spec.operations]
            rows = []
            for row in range(kind.spec.count * len(sizes)):
                own = [{name: value[row] for name, value in parameters.items()} for parameters in drawn]
                notes = [each.note(values) for each, values in zip(kind.operations, own, strict=True)]
                rows.append(
                    " · ".join(f"{n} {note}".strip() for n, note in zip(names, notes, strict=True) if note is not None)
                )
            found += [rows[start : start + len(sizes)] for start in range(0, len(rows), len(sizes))]
        return found

    def apply(
        self,
        images: Sequence[Tensor],
        draws: Draws,
        cropped: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> list[Tensor]:
        """Makes the views, without gradient and in float32 even under autocast.

        Args:
            images: (N, C, H, W) uint8, one tensor for all views or one for each.
            draws: on the images' device.
            cropped: `images` are the stacked results of `crop_one`.
            memory_format: of the views.

        Returns:
            for each view (N, C, size, size) float32, normalized; views that are made together are slices of one tensor.
        """
        if len(images) not in (1, len(self)):
            raise ValueError(f"{len(images)} batches of images for {len(self)} views: give one, or one for each")
        sources = list(images) * len(self) if len(images) == 1 else list(images)
        device = sources[0].device
        if device not in self._on_device:
            self._on_device[device] = self._affine[0].to(device), self._affine[1].to(device)
        shift, scale = self._on_device[device]
        views: list[Tensor] = []
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for number, (group, parameters) in enumerate(zip(self.groups, draws.values, strict=True)):
                make, most = (
                    self._compiled.get(number, group.make),
                    self._samples_at_once(number, device, len(sources[0])),
                )
                own = sources[len(views) : len(views) + len(group)]
                views += group.apply(make, own, parameters, shift, scale, cropped, memory_format, most)
        return views

    def _samples_at_once(self, number: int, device: torch.device, count: int) -> int:
        """How many samples of a group's views are processed at once, of views of `count` samples."""
        group = self.groups[number]
        numbers = group.channels * group.size**2
        if device.type != "cpu":
            return max(count, _AT_ONCE // numbers)
        # Compiled code fuses what would profit from the cache, and larger buffers only cost page faults.
        return count if number in self._compiled else max(1, _CHUNK // numbers)
