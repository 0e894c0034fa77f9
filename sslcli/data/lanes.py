"""The order of a stream: shards are dealt to lanes, and each lane is an endless sequence of shuffled blocks.

With L lanes, images ⌊ℓN/L⌋ to ⌊(ℓ+1)N/L⌋ of a batch of N are from lane ℓ. So whoever needs a part of the batch (a
process, a micro-batch, a worker) reads the lanes that it overlaps and no other, and the order depends on none of them.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sslcli.contracts.data import Dataset, StreamDataset, StreamItem
from sslcli.contracts.errors import SslError, UnreadableImage, UserError
from sslcli.randomness import permutation, seed_for

from .decode import decode
from .objects.items import to_pixels
from .watch import reading

#: Separate the order of the shards and of the images in a block from all other draws.
_SHARDS, _BLOCKS = 0x736861726473, 0x626C6F636B73

#: Where a lane goes on: which of the shards dealt to it, the position there, and the images of it before that.
Place = tuple[int, int, int]
START: Place = (0, 0, 0)


def images_per_epoch(stream: StreamDataset) -> int:
    """Returns how many images count as an epoch; UserError if neither the stream nor its options say it."""
    if stream.options.epoch_images is not None:
        return stream.options.epoch_images
    known = [count for count in (stream.length, stream.options.limit) if count is not None]
    if not known:
        raise UserError(
            f"data.epoch_images: {stream.info.name!r} does not know how many images it has; set how many count as one "
            "epoch, such as data.epoch_images=1000000"
        )
    return min(known)


@dataclass(frozen=True)
class Layout:
    """How a stream is cut, of its options, the seed and the batches alone.

    Attributes:
        names: of all shards.
        limit: see `StreamOptions`.
        lanes: how many.
        batch_size: images of a step, over all lanes.
        steps_per_epoch: blocks begin anew with each epoch.
        block_steps: the steps for which a block lasts, but for an epoch's last one.
        seed: the run's.
    """

    names: tuple[str, ...]
    limit: int | None
    lanes: int
    batch_size: int
    steps_per_epoch: int
    block_steps: int
    seed: int

    @classmethod
    def of(cls, stream: StreamDataset, batch_size: int, steps_per_epoch: int, seed: int) -> Layout:
        options, names = stream.options, tuple(stream.shards)
        if not names:
            raise UserError(f"data: {stream.info.name!r} has no shards")
        block_steps = min(max(options.shuffle_buffer // batch_size, 1), steps_per_epoch)
        lanes = min(options.open_shards, len(names), options.limit or sys.maxsize, batch_size)
        return cls(names, options.limit, lanes, batch_size, steps_per_epoch, block_steps, seed)

    @property
    def used(self) -> int:
        """The number of shards that are read: the first ones, if the limit is below it."""
        return min(len(self.names), self.limit or sys.maxsize)

    def most(self, shard: int) -> int:
        """Returns how many images of a shard are used at most."""
        if self.limit is None:
            return sys.maxsize
        return (shard + 1) * self.limit // self.used - shard * self.limit // self.used

    def shard(self, lane: int, turn: int) -> int:
        """Returns the shard that a lane reads after `turn` others."""
        number, place = divmod(turn * self.lanes + lane, self.used)
        return int(permutation(seed_for(self.seed, _SHARDS), number, self.used, place, place + 1))

    def first(self, lane: int) -> int:
        """Returns the place in a batch at which a lane's part begins, and that of the one before it ends."""
        return lane * self.batch_size // self.lanes

    def block(self, step: int) -> tuple[int, int]:
        """Returns how many steps of its block come before a step, and how many the block has."""
        place = step % self.steps_per_epoch
        before = place % self.block_steps
        return before, min(self.block_steps, self.steps_per_epoch - (place - before))

    def order(self, lane: int, step: int, count: int) -> list[int]:
        """Returns the order of the `count` images in the block of a lane that the step belongs to."""
        key, begin = seed_for(self.seed, _BLOCKS, lane), step - self.block(step)[0]
        order: list[int] = permutation(key, begin, count).tolist()
        return order

    def identity(self) -> dict[str, str | int]:
        """Returns what a resumed run must have as the run had it, by its name for users."""
        digest = hashlib.sha256("\0".join(self.names).encode()).hexdigest()[:8]
        return {
            "shards": f"{len(self.names)} ({digest})", "training.batch_size": self.batch_size,
            "steps of an epoch": self.steps_per_epoch,
        }  # fmt: skip


@dataclass(frozen=True)
class Held:
    """An image that was read: of which shard, and its lane's place before it."""

    item: StreamItem
    shard: int
    place: Place

    @property
    def number(self) -> int:
        """Stands for the image, in every epoch."""
        return (self.shard << 32) + self.place[2]


class Lane:
    """Reads one lane; `block` has the images from which those of the current step are chosen.

    While a block lasts, as many images of the next are read in each step as it uses of this one.
    """

    def __init__(self, stream: StreamDataset, layout: Layout, number: int, place: Place, step: int) -> None:
        self.stream, self.layout, self.number, self.step = stream, layout, number, step
        self.block: list[Held] = []
        self._order: list[int] = []
        self._size = layout.first(number + 1) - layout.first(number)
        self._coming: deque[Held] = deque()
        self._behind = place
        self._read = self._images(place)

    def advance(self) -> list[int]:
        """Goes to the next step, from `step` on; returns the numbers in `block` of its images, in order."""
        before, steps = self.layout.block(self.step)
        size, count = self._size, steps * self._size
        if before == 0 or not self.block:
            self._read_up_to(count)
            self.block = [self._coming.popleft() for _ in range(count)]
            self._order = self.layout.order(self.number, self.step, count)
        self._read_up_to(min(len(self._coming) + size, self.layout.block_steps * size))
        self.step += 1
        return self._order[before * size : (before + 1) * size]

    @property
    def place(self) -> Place:
        """Where the block of the next step begins."""
        if self.layout.block(self.step)[0] > 0:
            return self.block[0].place
        return self._coming[0].place if self._coming else self._behind

    def _read_up_to(self, count: int) -> None:
        while len(self._coming) < count:
            self._coming.append(next(self._read))

    def _images(self, place: Place) -> Iterator[Held]:
        turn, position, taken = place
        unused = 0
        while unused < self.layout.used:
            shard = self.layout.shard(self.number, turn)
            for item in self._shard(shard, position, self.layout.most(shard) - taken):
                reading()
                held = Held(item, shard, (turn, position, taken))
                position, taken, unused = item.next, taken + 1, -1
                self._behind = (turn, position, taken)
                yield held
            turn, position, taken, unused = turn + 1, 0, 0, unused + 1
        raise SslError(f"data: {self.stream.info.name!r}: {unused} shards in a row have no images")

    def _shard(self, shard: int, position: int, most: int) -> Iterator[StreamItem]:
        classes = self.stream.info.classes
        try:
            for item in itertools.islice(self.stream.read(shard, position), most):
                if classes is not None and (item.label is None or not 0 <= item.label < len(classes)):
                    raise ValueError(f"an image has the label {item.label}, but there are {len(classes)} classes")
                yield item
        except Exception as error:  # whatever a plugin raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise SslError(
                f"data: shard {self.layout.names[shard]!r} of {self.stream.info.name!r} cannot be read ({reason}); "
                "repair or restore it, and resume"
            ) from error


class Block(Dataset):
    """The images of a lane's block, as the dataset that a `Cropper` reads; an unreadable one is replaced from it."""

    def __init__(self, stream: StreamDataset) -> None:
        super().__init__(stream.options)
        self.info, self.names = stream.info, tuple(stream.shards)
        self.held: list[Held] = []

    def __len__(self) -> int:
        return len(self.held)

    def name_of(self, index: int) -> str:
        held = self.held[index]
        return held.item.name or f"{self.names[held.shard]}[{held.place[2]}]"

    def image(self, index: int) -> Tensor:
        return self.image_for(index, None)

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        return decoded(self.held[index].item, self.info.channels, wanted, self.name_of(index))


def decoded(item: StreamItem, channels: int, wanted: int | None, name: str = "") -> Tensor:
    """Returns an image of a stream, uint8 (C, H, W), as `decode` does; `name` is for one without.

    Raises:
        UnreadableImage: if it cannot be decoded.
    """
    name = item.name or name
    if isinstance(item.image, bytes):
        return decode(name, channels, wanted, item.image)
    try:
        return to_pixels(item.image, channels)
    except Exception as error:  # Pillow decodes only now, and raises all kinds
        raise UnreadableImage(name, " ".join(str(error).split())) from error
