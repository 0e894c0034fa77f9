"""The source of a stream: an order that nothing but seed, stream and batch size changes, and a cursor that keeps it."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from source_helpers import assert_all_same, assert_same
from stream_helpers import Counted, numbers, streamed, taken, whole

from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.source import SourceBatch

UNEVEN = (7, 3, 9, 1, 6, 8, 5, 2)


@pytest.mark.parametrize("buffer", [1, 16, 1000])
def test_each_epoch_has_each_image_once_if_shards_are_of_one_size(buffer: int) -> None:
    stream = Counted([4] * 8, shuffle_buffer=buffer)
    found = numbers(stream, taken(stream, 12))
    epochs = [found[first : first + 32] for first in (0, 32, 64)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(32))] * 3
    assert len(set(map(tuple, epochs))) == 3


def test_nothing_is_left_out_if_they_are_not() -> None:
    stream = Counted(UNEVEN)
    counts = Counter(numbers(stream, taken(stream, 40, 16)))
    assert len(counts) == sum(UNEVEN)
    assert all(abs(count - 640 / sum(UNEVEN)) <= 3 for count in counts.values())


def test_a_batch_has_pixels_labels_positions_and_epoch_of_its_images() -> None:
    stream = Counted(UNEVEN)
    for step, (batch,) in enumerate(taken(stream, 12)):
        assert batch.labels is not None
        assert batch.labels.tolist() == [(index >> 32) % 3 for index in batch.index.tolist()]
        expected = torch.tensor([stream.number(index) for index in batch.index.tolist()])
        for view in batch.images:
            assert torch.equal(view[:, 1, 3, 5].long(), expected)
        assert batch.positions.tolist() == list(range(8 * (step % 5), 8 * (step % 5) + 8))
        assert batch.epoch == step // 5
        assert batch.cropped
    assert all(batch.labels is None for (batch,) in taken(Counted(UNEVEN, labeled=False), 2))


@pytest.mark.parametrize("shards", [UNEVEN, pytest.param((40,), marks=pytest.mark.slow), (20, 21)])
@pytest.mark.parametrize("workers", [0, 2])
def test_neither_micro_batches_nor_workers_change_anything(shards: tuple[int, ...], workers: int) -> None:
    expected = [whole(step) for step in taken(Counted(shards, bad=(3, 11), max_unreadable=0.1), 8)]
    assert any(batch.replaced for batch in expected)
    for accumulate in (2,) if workers else (2, 4):
        found = taken(Counted(shards, bad=(3, 11), max_unreadable=0.1), 8, 8, accumulate, workers=workers)
        assert [len(step) for step in found] == [accumulate] * 8
        for step, one in zip(found, expected, strict=True):
            assert_same(whole(step), one)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_read_disjoint_parts_of_each_batch_and_disjoint_shards(accumulate: int) -> None:
    alone, pair = Counted(UNEVEN), [Counted(UNEVEN), Counted(UNEVEN)]
    expected = taken(alone, 6, 8, accumulate)
    parts = [taken(stream, 6, 8, accumulate, rank, 2) for rank, stream in enumerate(pair)]
    for step, *both in zip(expected, *parts, strict=True):
        for micro, *two in zip(step, *both, strict=True):
            assert_same(whole(two), micro)
    assert sorted(pair[0].opened + pair[1].opened) == sorted(alone.opened)


@pytest.fixture(scope="module")
def uninterrupted() -> list[list[SourceBatch]]:
    return taken(Counted(UNEVEN, shuffle_buffer=16), 16)


@pytest.mark.parametrize(
    ("step", "workers"),
    [(3, 0), (13, 0), (3, 2), *(pytest.param(step, 0, marks=pytest.mark.slow) for step in (1, 2, 5, 8))],
)
def test_a_cursor_gives_the_rest_of_the_stream(step: int, workers: int, uninterrupted: list[list[SourceBatch]]) -> None:
    with streamed(Counted(UNEVEN, shuffle_buffer=16), workers=workers) as source:
        list(islice(source.batches(0), step))
        cursor = source.cursor()
    rest = taken(Counted(UNEVEN, shuffle_buffer=16), 16 - step, 8, 2, cursor=cursor)  # micro-batches may change
    assert_all_same([[whole(each)] for each in rest], uninterrupted[step:])


def test_resuming_reads_no_more_than_the_buffer_again() -> None:
    sizes = [100] * 8
    with streamed(Counted(sizes, shuffle_buffer=32)) as source:
        list(islice(source.batches(0), 43))
        cursor = source.cursor()
    stream = Counted(sizes, shuffle_buffer=32)
    taken(stream, 1, cursor=cursor)
    assert stream.given <= 32 + 8 + 4
    assert len(str(cursor)) < 250


def test_a_source_starts_again_where_its_cursor_was() -> None:
    """Training with several processes discards the first batch once."""
    with streamed(Counted(UNEVEN)) as source:
        first = next(source.batches(0))
        assert_all_same([next(source.batches(0))], [first])
        assert source.cursor()["step"] == 1
        with pytest.raises(ValueError, match="cannot go to step 3"):
            next(source.batches(3))


def test_a_limit_takes_the_first_images_of_every_shard() -> None:
    stream = Counted([10] * 8, limit=20)
    found = Counter(numbers(stream, taken(stream, 10)))
    assert len(found) == 20
    assert {number // 10 for number in found} == set(range(8))
    assert all(number % 10 < 3 for number in found)
    few = Counted([10] * 8, limit=3)
    assert set(numbers(few, taken(few, 10, 2))) == {0, 10, 20}


def test_an_epoch_is_what_the_options_say() -> None:
    for options, steps in (({}, 10), ({"limit": 24}, 3), ({"epoch_images": 170}, 21)):
        with streamed(Counted([10] * 8, **options)) as source:
            assert source.steps_per_epoch == steps
    unknown = Counted([10] * 8)
    unknown.length = None
    with pytest.raises(UserError, match=r"^data.epoch_images: 'counted' does not know how many .* set how many"):
        taken(unknown, 1)
    few = r"50 is more than the 5 images of counted; .* or raise data.epoch_images"
    with pytest.raises(UserError, match=few):
        taken(Counted([10] * 8, epoch_images=5), 1, 50)


def test_an_unreadable_image_is_replaced_and_too_many_are_an_error() -> None:
    stream = Counted([8] * 4, bad=(5,), max_unreadable=0.5)
    steps = taken(stream, 8)
    assert {text for (batch,) in steps for text in batch.replaced} == {"0.tar[5]: not an image of a known format"}
    assert 5 not in numbers(stream, steps)
    with pytest.raises(SslError, match=r"2 of 32 images cannot be read, .*data.max_unreadable=0.05.*0.tar\[5\]"):
        taken(Counted([8] * 4, bad=(5, 6), max_unreadable=0.05), 8)
    with pytest.raises(SslError, match="cannot be read"):
        taken(Counted([8] * 4, bad=range(32), max_unreadable=1.0), 1)
    # Of all images, not of an epoch's: 4 of 80 are no more than a tenth, however short an epoch is.
    assert len(taken(Counted([20] * 4, bad=(3, 25, 43, 65), epoch_images=16, max_unreadable=0.1), 12)) == 12


class Truncated(Counted):
    def read(self, shard, position):
        yield from super().read(shard, position)
        raise OSError("unexpected end\nof data")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_cannot_be_read_is_named_in_one_line(workers: int) -> None:
    words = r"^data: shard '\d.tar' of 'counted' cannot be read \(OSError: unexpected end of data\); [^\n]*resume$"
    with pytest.raises(SslError, match=words):
        taken(Truncated([4] * 4), 8, workers=workers)


def test_labels_out_of_range_and_empty_shards_are_reported() -> None:
    stream = Counted([4] * 4)
    stream.info = type(stream.info)("counted", 3, None, (0.5,) * 3, (0.5,) * 3, ("a",))
    with pytest.raises(SslError, match=r"the label [12], but there are 1 classes"):
        taken(stream, 1)
    with pytest.raises(SslError, match="4 shards in a row have no images"):
        taken(Counted([0] * 4, epoch_images=32), 1)
    with pytest.raises(UserError, match="'counted' has no shards"):
        taken(Counted([], epoch_images=32), 1)


def test_another_stream_or_batch_is_not_resumed() -> None:
    with streamed(Counted(UNEVEN)) as source:
        list(islice(source.batches(0), 3))
        cursor = source.cursor()
    for stream, batch_size, words in (
        (Counted(UNEVEN[:7]), 8, r"other shards: 8 \(\w{8}\) in the run, 7 \(\w{8}\) now"),
        (Counted(UNEVEN), 4, "other training.batch_size: 8 in the run, 4 now"),
        (Counted(UNEVEN, epoch_images=16), 8, "other steps of an epoch: 5 in the run, 2 now"),
    ):
        with streamed(stream, batch_size) as source, pytest.raises(UserError, match=words):
            source.restore(cursor)
    with streamed(Counted(UNEVEN)) as source, pytest.raises(UserError, match="other shards: None in the run"):
        source.restore(None)
