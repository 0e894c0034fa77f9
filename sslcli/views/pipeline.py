"""Makes the views of a batch: draws the parameters of every operation and applies the operations in order.

Draws are made on the CPU and are a function of (seed, epoch, position, view, operation); applying them is a pure
function of tensors with static shapes, on any device, eager or compiled.
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

#: Numbers that eager code on a CPU processes at once, so that an operation finds its input in the cache.
_CHUNK = 1 << 19

Make = Callable[[Tensor, list[Parameters], Tensor, Tensor, bool], Tensor]


class ViewKind:
    """One `ViewSpec` with its operations: makes views of that kind."""

    def __init__(self, spec: ViewSpec, channels: int) -> None:
        self.spec = spec
        self.channels = channels
        self.operations = [_operation(item.name, item.options, spec.size, channels) for item in spec.operations]
        first, rest = self.operations[0], self.operations[1:]
        self._folds_flip = isinstance(first, Resampling) and bool(rest) and isinstance(rest[0], Flip)

    def draw(self, keys: tuple[int, int, Tensor], first: int, sizes: Tensor | None, crops_only: bool) -> list[Any]:
        """Returns the parameters of each view of this kind, of which the first has the index `first` among all views.

        `keys` are the seed, the epoch and the positions (N,); the others are those of `ViewMaker.draw`.
        """
        count, samples = self.spec.count, len(keys[2])
        views = torch.arange(first, first + count).view(count, 1)
        view_sizes = torch.full((count * samples, 2), self.spec.size)
        result: list[list[Parameters]] = [[] for _ in range(count)]
        for index, operation in enumerate(self.operations):
            parameters: Parameters = {}
            if (sizes is not None) if operation.geometric else not crops_only:
                seed, epoch, positions = keys
                numbers = uniform(seed, epoch, positions, views, index, count=operation.draws).flatten(0, 1)
                incoming = sizes.repeat(count, 1) if operation.geometric and sizes is not None else view_sizes
                parameters = operation.parameters(numbers, incoming)
            for view in range(count):
                rows = slice(view * samples, (view + 1) * samples)
                result[view].append({name: value[rows] for name, value in parameters.items()})
        return result

    def make(
        self, images: Tensor, parameters: list[Parameters], mean: Tensor, std: Tensor, cropped: bool = False
    ) -> Tensor:
        """Makes one view: a pure function of tensors, without branches on their values.

        Args:
            images: (N, C, H, W) uint8; if `cropped`, the output of the geometric operation.
            parameters: those of each operation, on the images' device.
            mean: (C,), for images in [0, 1].
            std: (C,).
            cropped: the geometric operation has been applied already, but not a flip after it.

        Returns:
            (N, C, size, size) float32, normalized.
        """
        steps = list(zip(self.operations, parameters, strict=True))
        operation, values = steps.pop(0)
        if cropped:
            images = images.float() / 255
        else:
            if self._folds_flip:
                values = {**values, "mirror": steps.pop(0)[1]["chosen"]}
            images = operation.apply(images, values)
        for operation, values in steps:
            images = operation.apply(images, values)
        return normalize(images, mean, std)

    def make_in_chunks(
        self, images: Tensor, parameters: list[Parameters], mean: Tensor, std: Tensor, cropped: bool = False
    ) -> Tensor:
        """The same, on a CPU in chunks that fit into its cache."""
        samples = max(1, _CHUNK // (self.channels * self.spec.size**2))
        if images.device.type != "cpu" or len(images) <= samples:
            return self.make(images, parameters, mean, std, cropped)
        result = torch.empty(len(images), self.channels, self.spec.size, self.spec.size)
        for start in range(0, len(images), samples):
            rows = slice(start, start + samples)
            chunk = [{name: value[rows] for name, value in values.items()} for values in parameters]
            result[rows] = self.make(images[rows], chunk, mean, std, cropped)
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


class ViewMaker:
    """Makes all views of a batch. Picklable, for worker processes; compiled code is not part of the pickle.

    Attributes:
        kinds: one `ViewKind` per spec.
        sizes: the side of every view (a spec with `count: 2` has two).
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
        """Makes `apply` compile each kind of view at its first use; views of one kind share their code.

        Args:
            mode: that of `torch.compile`; `reduce-overhead` replays CUDA graphs.
            below: only views below this size in pixels are compiled.
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
        """Draws the parameters of every operation of every view; they do not depend on the batch a sample is in.

        Args:
            epoch: counted from 0.
            positions: (N,) int64, the samples' positions in the epoch's order.
            sizes: (N, 2), height and width of the source images; None if workers have cropped them: the geometric
                parameters are left out.
            crops_only: draw only the geometric parameters, for `crop_one`.
        """
        values: list[list[Parameters]] = []
        for kind in self.kinds:
            values += kind.draw((self._seed, epoch, positions), len(values), sizes, crops_only)
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
        for kind, parameters in zip(self._of, draws.values, strict=True):
            own = {name: value[row] for name, value in parameters[0].items()}
            crops.append(self.kinds[kind].operations[0].apply_one(image, own))
        return crops

    def apply(self, images: Sequence[Tensor], draws: Draws, cropped: bool = False) -> list[Tensor]:
        """Makes the views, without gradient and in float32 even under autocast.

        Args:
            images: (N, C, H, W) uint8, one tensor for all views or one for each.
            draws: on the images' device.
            cropped: `images` are the stacked results of `crop_one`.

        Returns:
            for each view (N, C, size, size) float32, normalized.
        """
        if len(images) not in (1, len(self)):
            raise ValueError(f"{len(images)} batches of images for {len(self)} views: give one, or one for each")
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
