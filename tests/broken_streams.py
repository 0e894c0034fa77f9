"""Streams that break one rule each, as `broken_plugins` has them of other plugins."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from broken_plugins import broken

from sslcli.contracts.data import DataInfo, DatasetOptions, RootedOptions, StreamDataset, StreamItem, StreamOptions
from sslcli.testing.stand_ins import pixels


class Numbers(StreamDataset):
    """A correct stream of two shards of four images."""

    shards = ("a", "b")
    length = 8

    def __init__(self, options: StreamOptions) -> None:
        super().__init__(options)
        self.pixels = pixels(8, 3, 8, 8)
        self.info = DataInfo("numbers", 3, (8, 8), (0.5,) * 3, (0.2,) * 3, ("x", "y"))
        self.finish()

    def finish(self) -> None: ...

    def read(self, shard: int, position: int) -> Iterator[StreamItem]:
        for number in range(position, 4):
            yield StreamItem(self.pixels[4 * shard + number], number + 1, number % 2)


class RootedStreamOptions(StreamOptions, RootedOptions):
    """Options with a folder."""


class OtherOptions(DatasetOptions):
    """Not those of a stream."""


def items(change: Callable[[StreamItem], StreamItem]) -> Any:
    """A `read` whose items are changed."""
    return lambda self, shard, position: map(change, Numbers.read(self, shard, position))


def from_the_start(self: Any, shard: int, position: int) -> Iterator[StreamItem]:
    return Numbers.read(self, shard, 0)


def off_by_one(self: Any, shard: int, position: int) -> Iterator[StreamItem]:
    return Numbers.read(self, shard, max(position - 1, 0))


def one_at_a_time(self: Any, shard: int, position: int) -> Iterator[StreamItem]:
    self.at = position
    while self.at < 4:
        item = next(Numbers.read(self, shard, self.at))
        self.at += 1
        yield item


def shuffled(self: Any, shard: int, position: int) -> Iterator[StreamItem]:
    found = list(Numbers.read(self, shard, position))
    return iter(random.sample(found, len(found)))


def relabeled(self: Any, shard: int, position: int) -> Iterator[StreamItem]:
    self.label = 1 - getattr(self, "label", 0)
    return (replace(item, label=self.label) for item in Numbers.read(self, shard, position))


STREAMS = [
    broken("OtherBase", Numbers, "Options must be a class that inherits from StreamOptions", Options=OtherOptions),
    broken("AnyFolder", Numbers, "one line that names the folder", Options=RootedStreamOptions),
    broken("NoShards", Numbers, "shards must name each shard once", shards=()),
    broken("TwiceAShard", Numbers, "shards must name each shard once", shards=("a", "a")),
    broken("OtherShards", Numbers, "shards, opened again,",
           finish=lambda self: setattr(self, "shards", (str(id(self)), "b"))),
    broken("OpenFile", Numbers, "cannot be pickled", finish=lambda self: setattr(self, "file", lambda: None)),
    broken("Pairs", Numbers, r"read\(0, 0\): image 0 is tuple, not a StreamItem",
           read=items(lambda item: (item.image, item.label))),  # type: ignore[arg-type, return-value]
    broken("FromZero", Numbers, "has next=0; it must be a number above 0",
           read=items(lambda item: replace(item, next=item.next - 1))),
    broken("Unlabeled", Numbers, "has the label None, but there are 2 classes",
           read=items(lambda item: replace(item, label=None))),
    broken("Damaged", Numbers, "image 0 cannot be decoded: .*not an image", read=items(
        lambda item: replace(item, image=b"nothing"))),
    broken("OtherSize", Numbers, r"is torch.uint8 \(3, 4, 8\), not torch.uint8 \(3, 8, 8\)",
           read=items(lambda item: replace(item, image=item.image[:, 4:]))),  # type: ignore[index]
    broken("Shuffled", Numbers, "differs when it is read again", read=shuffled),
    broken("Relabeled", Numbers, "differs when it is", read=relabeled),
    broken("FromTheStart", Numbers, r"read\(0, 1\) is not what follows image 0 of shard 0", read=from_the_start),
    broken("OffByOne", Numbers, r"read\(0, 1\) is not what follows image 0 of shard 0", read=off_by_one),
    broken("OneAtATime", Numbers, "two iterators that read shard 0 at the same time", read=one_at_a_time),
    broken("Empty", Numbers, "Empty is empty", read=lambda self, shard, position: iter(())),
    broken("WrongLength", Numbers, "length is 9, but there are 8 images", length=9),
]  # fmt: skip
