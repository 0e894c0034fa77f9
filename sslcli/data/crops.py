"""What happens in a worker process: images are decoded, each once, and cropped for every view."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import torch.utils.data
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.randomness import hash_bits

from .watch import reading

if TYPE_CHECKING:
    from sslcli.views.pipeline import ViewMaker

#: How many other images are tried when one cannot be read.
_ATTEMPTS = 100
#: Decoded images are collected up to this size, since drawing for many at once costs as much as for one.
_GROUP_BYTES = 16 * 2**20
#: Separates the choice of that image from all other draws.
_KEY = 0x7265706C616365


@dataclass(frozen=True)
class Slice:
    """A part of a micro-batch, small enough to be sent as plain numbers: `index[k]` is at position `first + k`.

    The views may depend on the optimizer step that it is for.
    """

    epoch: int
    first: int
    index: list[int]
    step: int = 0


@dataclass(frozen=True)
class Crops:
    """What a worker makes of a slice.

    Attributes:
        slice: what was asked for.
        index: the images that were used.
        buffer: uint8 (bytes,): for each view in turn (N, C, size, size). One tensor, since each one that comes from
            another process keeps a file open.
        unreadable: index and message of each image that could not be read.
        exhausted: for some position no readable image was found.
        labels: of a stream, those of the images that were used.
        problem: why a view cannot be made by a callable of the user's; raised here it would have a traceback.
    """

    slice: Slice
    index: list[int]
    buffer: Tensor
    unreadable: list[tuple[int, str]]
    exhausted: bool
    labels: list[int] = field(default_factory=list)
    problem: str = ""

    def pin_memory(self) -> Crops:
        """Called by torch's loader, in a separate thread."""
        return replace(self, buffer=self.buffer.pin_memory())


def split_views(buffer: Tensor, count: int, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    """Returns the views in a `Crops.buffer`, for each shape (C, S, S) a (count, C, S, S), sharing its memory."""
    parts = torch.split(buffer, [count * c * h * w for c, h, w in shapes])
    return [part.view(count, *shape) for part, shape in zip(parts, shapes, strict=True)]


def wanted_side(*views: ViewMaker) -> int | None:
    """Returns the shorter side, in pixels, below which some view would lose detail; None: the full size."""
    sides = [kind.operations[0].source_side() for maker in views for kind in maker.kinds]
    return None if None in sides else max(side for side in sides if side is not None)


def at_most(image: Tensor, side: int) -> Tensor:
    """Returns a uint8 image (C, H, W) whose longer side is no more than so many pixels."""
    height, width = image.shape[-2:]
    if max(height, width) <= side:
        return image
    size = [max(1, round(each * side / max(height, width))) for each in (height, width)]
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


class Cropper(torch.utils.data.Dataset[Crops]):
    """Makes crops of slices; picklable. To torch it is a dataset whose keys are slices."""

    def __init__(self, dataset: Dataset, views: ViewMaker, seed: int) -> None:
        self.dataset, self.views, self.seed = dataset, views, seed

    def shapes(self, step: int) -> list[tuple[int, int, int]]:
        """Returns the shape (C, S, S) of every view in that step."""
        return [(self.dataset.info.channels, size, size) for size in self.views.at(step).sizes]

    def name_of(self, index: int) -> str:
        return self.dataset.name_of(index)

    def __getitem__(self, asked: Slice) -> Crops:
        count, shapes, wanted = len(asked.index), self.shapes(asked.step), wanted_side(self.views.at(asked.step))
        buffer = torch.empty(count * sum(c * h * w for c, h, w in shapes), dtype=torch.uint8)
        views = split_views(buffer, count, shapes)
        result = Crops(asked, list(asked.index), buffer, [], exhausted=False)
        group: list[Tensor] = []
        self.dataset.read_ahead(asked.index)
        for row in range(count):
            found = self._readable(asked, row, wanted, result.unreadable)
            if found is None:
                return replace(result, exhausted=True)
            result.index[row], image = found
            group.append(image)
            if row + 1 == count or sum(waiting.nbytes for waiting in group) > _GROUP_BYTES:
                try:
                    self._crop(group, result, row + 1 - len(group), views)
                except UserError as error:
                    return replace(result, problem=str(error))
                group.clear()
        return result

    def _crop(self, images: list[Tensor], result: Crops, start: int, views: list[Tensor]) -> None:
        """Crops images into the rows `start`, `start + 1`, … of each view."""
        asked = result.slice
        sizes = torch.tensor([image.shape[-2:] for image in images])
        positions = torch.arange(len(images)) + asked.first + start
        maker = self.views.at(asked.step)
        draws = maker.draw(asked.epoch, positions, sizes, crops_only=True)
        for number, image in enumerate(images):
            try:
                crops = maker.crop_one(image, draws, number)
            except UserError as error:
                raise UserError(f"{error} (image {self.dataset.name_of(result.index[start + number])})") from error
            for view, crop in zip(views, crops, strict=True):
                view[start + number] = crop

    def _readable(
        self, asked: Slice, row: int, wanted: int | None, unreadable: list[tuple[int, str]]
    ) -> tuple[int, Tensor] | None:
        """The image that was asked for, or else the first readable one of those drawn to replace it, and its index."""
        index = asked.index[row]
        for attempt in range(_ATTEMPTS):
            reading(index)
            try:
                return index, self.dataset.image_for(index, wanted)
            except UnreadableImage as error:
                unreadable.append((index, str(error)))
            index = int(hash_bits(_KEY, self.seed, asked.epoch, asked.first + row, attempt)) % len(self.dataset)
        return None
