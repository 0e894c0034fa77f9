"""Makes the views of a batch: draws the parameters of every operation and applies the operations in order.

Drawing happens on the CPU and is a function of (seed, epoch, position, view, operation); applying is a pure function
of tensors with static shapes, on any device, eager or compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sslcli.augmentations.flip import Flip
from sslcli.augmentations.resampling import Resampling
from sslcli.contracts.errors import UserError
from sslcli.contracts.views import Operation, Parameters, ViewSpec
from sslcli.plugins import load
from sslcli.randomness import uniform

from .draws import Draws
from .normalize import normalize

#: Numbers worked on at once by eager code on a CPU, so that what one operation wrote the next finds in the cache.
_CHUNK = 1 << 19

Make = Callable[[Tensor, list[Parameters], Tensor, Tensor, bool], Tensor]


class ViewKind:
    """One `ViewSpec` with its operations: all that is needed to make one view of that kind."""

    def __init__(self, spec: ViewSpec, channels: int) -> None:
        self.spec = spec
        self.channels = channels
        self.operations = [_operation(item.name, item.options, spec.size, channels) for item in spec.operations]
        geometric = [operation.geometric for operation in self.operations]
        if geometric[:1] != [True] or sum(geometric) != 1:
            names = ", ".join(item.name for item in spec.operations) or "nothing"
            raise UserError(f"views: a view needs one crop or resize, as its first operation; this one has {names}")
        self._folds = (
            len(self.operations) > 1
            and isinstance(self.operations[0], Resampling)
            and isinstance(self.operations[1], Flip)
        )

    def draw(self, keys: tuple[int, int, Tensor], first: int, sizes: Tensor | None, crops_only: bool) -> list[Any]:
        """Returns the parameters of each of this kind's views; see `ViewMaker.draw`."""
        count, samples = self.spec.count, len(keys[2])
        views = torch.arange(first, first + count).view(count, 1)
        made = torch.full((count * samples, 2), self.spec.size)
        result: list[list[Parameters]] = [[] for _ in range(count)]
        for place, operation in enumerate(self.operations):
            parameters: Parameters = {}
            if (sizes is not None) if operation.geometric else not crops_only:
                seed, epoch, positions = keys
                numbers = uniform(seed, epoch, positions, views, place, count=operation.draws).flatten(0, 1)
                come_in = sizes.repeat(count, 1) if operation.geometric and sizes is not None else made
                parameters = operation.parameters(numbers, come_in)
            for view in range(count):
                rows = slice(view * samples, (view + 1) * samples)
                result[view].append({name: value[rows] for name, value in parameters.items()})
        return result

    def make(
        self, images: Tensor, parameters: list[Parameters], mean: Tensor, std: Tensor, cropped: bool = False
    ) -> Tensor:
        """Makes one view: a pure function of tensors, without a branch on what is in them.

        Args:
            images: (N, C, H, W) uint8; with `cropped` as the geometric operation left them.
            parameters: of each operation, on the images' device.
            mean: (C,) of images in [0, 1].
            std: (C,).
            cropped: the geometric operation is done already, but not a flip after it.

        Returns:
            (N, C, size, size) float32, normalized.
        """
        steps = list(zip(self.operations, parameters, strict=True))
        operation, chances = steps.pop(0)
        if cropped:
            images = images.float() / 255
        else:
            if self._folds:
                chances = {**chances, "mirror": steps.pop(0)[1]["chosen"]}
            images = operation.apply(images, chances)
        for operation, chances in steps:
            images = operation.apply(images, chances)
        return normalize(images, mean, std)

    def make_in_chunks(
        self, images: Tensor, parameters: list[Parameters], mean: Tensor, std: Tensor, cropped: bool = False
    ) -> Tensor:
        """The same in parts that fit into a CPU's cache; on other devices in one."""
        samples = max(1, _CHUNK // (self.channels * self.spec.size**2))
        if images.device.type != "cpu" or len(images) <= samples:
            return self.make(images, parameters, mean, std, cropped)
        result = torch.empty(len(images), self.channels, self.spec.size, self.spec.size)
        for start in range(0, len(images), samples):
            rows = slice(start, start + samples)
            part = [{name: value[rows] for name, value in chances.items()} for chances in parameters]
            result[rows] = self.make(images[rows], part, mean, std, cropped)
        return result


def _operation(name: str, options: dict[str, Any], size: int, channels: int) -> Operation:
    cls = load("sslcli.augmentations", name)
    if not (isinstance(cls, type) and issubclass(cls, Operation)):
        raise UserError(f"views: {name!r} is no operation but a preset; write preset: {name}")
    if cls.channels is not None and channels not in cls.channels:
        able = " or ".join(str(count) for count in sorted(cls.channels))
        raise UserError(
            f"views: {name!r} works on images with {able} channels, but these have {channels}; leave it out ({name}: 0)"
        )
    return cls(cls.Options.parse(options), size)


class ViewMaker:
    """Makes all views of a batch. Picklable, for worker processes; what was compiled stays behind.

    Attributes:
        kinds: one `ViewKind` per spec.
        sizes: the side of every view, counts expanded.
    """

    def __init__(
        self, views: Sequence[ViewSpec], channels: int, mean: Sequence[float], std: Sequence[float], seed: int
    ) -> None:
        """Args:
        views: the recipe, with names and options of operations that were validated already.
        channels: of the images.
        mean: per channel, of images in [0, 1].
        std: likewise.
        seed: of the run.

        Raises:
            UserError: if an operation is unknown, out of place or can't take this number of channels.
        """
        self.kinds = [ViewKind(spec, channels) for spec in views]
        self.sizes = [spec.size for spec in views for _ in range(spec.count)]
        self._of = [kind for kind, spec in enumerate(views) for _ in range(spec.count)]
        self._seed = seed
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._compiled: list[Make] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_device": {}, "_compiled": None}

    def compile(self, mode: str | None = None, below: int | None = None) -> None:
        """Has `apply` compile each kind of view at its first use; views of one kind share their code.

        Args:
            mode: torch.compile's; `reduce-overhead` replays CUDA graphs.
            below: leave views of this size in pixels and larger ones eager.
        """
        self._compiled = [
            torch.compile(kind.make, fullgraph=True, dynamic=False, mode=mode)
            if below is None or kind.spec.size < below
            else kind.make_in_chunks
            for kind in self.kinds
        ]

    def go_eager(self) -> None:
        """Undoes `compile`."""
        self._compiled = None

    def draw(self, epoch: int, positions: Tensor, sizes: Tensor | None, crops_only: bool = False) -> Draws:
        """Draws the parameters of every operation of every view, whatever batch a sample is in.

        Args:
            epoch: counted from 0.
            positions: (N,) int64, the samples' places in the epoch's order.
            sizes: (N, 2), height and width of the source images; None leaves the geometric parameters out, where
                workers have cropped.
            crops_only: draw the geometric parameters alone, for `crop_one`.
        """
        values: list[list[Parameters]] = []
        for kind in self.kinds:
            values += kind.draw((self._seed, epoch, positions), len(values), sizes, crops_only)
        return Draws.pack(values)

    def crop_one(self, image: Tensor, draws: Draws, row: int = 0) -> list[Tensor]:
        """Makes the geometric part of every view of one image, in a worker; a flip is left to `apply`.

        Args:
            image: (C, H, W) uint8, of any size.
            draws: of the geometric operations.
            row: which sample's the image is.

        Returns:
            for each view (C, size, size) uint8.
        """
        crops = []
        for kind, parameters in zip(self._of, draws.values, strict=True):
            own = {name: value[row] for name, value in parameters[0].items()}
            crops.append(self.kinds[kind].operations[0].apply_one(image, own))
        return crops

    def apply(self, images: Sequence[Tensor], draws: Draws, cropped: bool = False) -> list[Tensor]:
        """Makes the views, without gradient and in float32 whatever the autocast.

        Args:
            images: (N, C, H, W) uint8, one tensor for all views or one for each.
            draws: on the images' device.
            cropped: `images` are what `crop_one` made, stacked.

        Returns:
            for each view (N, C, size, size) float32, normalized.
        """
        if len(images) not in (1, len(self)):
            raise ValueError(f"{len(images)} batches of images for {len(self)} views; give one, or one for each")
        sources = list(images) * len(self) if len(images) == 1 else images
        device = sources[0].device
        if device not in self._on_device:
            self._on_device[device] = self._mean.to(device), self._std.to(device)
        mean, std = self._on_device[device]
        makes: Sequence[Make] = self._compiled or [kind.make_in_chunks for kind in self.kinds]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return [
                makes[kind](source, parameters, mean, std, cropped)
                for kind, source, parameters in zip(self._of, sources, draws.values, strict=True)
            ]
