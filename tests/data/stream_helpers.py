"""A stream without files, and what a source makes of it."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from PIL import Image
from source_helpers import CPU, views

from sslcli.contracts.data import DataInfo, StreamDataset, StreamItem, StreamOptions
from sslcli.contracts.source import SourceBatch
from sslcli.data.source import open_source
from sslcli.data.stream import StreamSource


@functools.cache
def png(value: int, size: tuple[int, int] = (12, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(file, "PNG")
    return file.getvalue()


class Counted(StreamDataset):
    """Shard s has `sizes[s]` images; the label of an image is its shard modulo 3, its pixels are its number in all.

    `opened` has (shard, position) of each `read`, `given` the number of images that were read.
    """

    def __init__(self, sizes: Sequence[int], *, labeled: bool = True, bad: Sequence[int] = (), **options: Any) -> None:
        super().__init__(StreamOptions(**{"shuffle_buffer": 8, "open_shards": 4, **options}))
        self.sizes, self.bad, self.length = sizes, bad, sum(sizes)
        self.info = DataInfo("counted", 3, None, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c") if labeled else None)
        self.shards = [f"{number}.tar" for number in range(len(sizes))]
        self.opened: list[tuple[int, int]] = []
        self.given = 0

    def read(self, shard: int, position: int) -> Iterator[StreamItem]:
        self.opened.append((shard, position))
        for number in range(position, self.sizes[shard]):
            self.given += 1
            everywhere = sum(self.sizes[:shard]) + number
            content = b"broken" if everywhere in self.bad else png(everywhere)
            yield StreamItem(content, number + 1, shard % 3)

    def number(self, index: int) -> int:
        """Of an image in all shards, from its index in a batch."""
        return sum(self.sizes[: index >> 32]) + (index & (1 << 32) - 1)


@contextmanager
def streamed(
    stream: Counted, batch_size: int = 8, accumulate: int = 1, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[StreamSource]:
    source = open_source(stream, CPU, batch_size, accumulate, 5, rank, world, views=views(8, seed=5), workers=workers)
    assert isinstance(source, StreamSource)
    try:
        yield source
    finally:
        source.close()
        assert multiprocessing.active_children() == []


def taken(stream: Counted, count: int, *arguments: int, cursor: Any = None, **named: int) -> list[list[SourceBatch]]:
    """The batches of steps, from a cursor on that was JSON in between."""
    with streamed(stream, *arguments, **named) as source:
        if cursor is not None:
            source.restore(json.loads(json.dumps(cursor)))
        return list(islice(source.batches(0 if cursor is None else cursor["step"]), count))


def numbers(stream: Counted, steps: list[list[SourceBatch]]) -> list[int]:
    """Of the images, in order."""
    return [stream.number(index) for step in steps for batch in step for index in batch.index.tolist()]


def whole(step: list[SourceBatch]) -> SourceBatch:
    """Micro-batches as one."""
    labels = None if step[0].labels is None else torch.cat([each.labels for each in step if each.labels is not None])
    return SourceBatch(
        images=[torch.cat(views) for views in zip(*(each.images for each in step), strict=True)],
        cropped=True, labels=labels, index=torch.cat([each.index for each in step]),
        positions=torch.cat([each.positions for each in step]), epoch=step[0].epoch,
        replaced=tuple(text for each in step for text in each.replaced),
    )  # fmt: skip
