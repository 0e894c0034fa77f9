"""Where views change in a run, workers crop for the step that a batch is for, however far ahead they are."""

from __future__ import annotations

import multiprocessing
from itertools import islice

import pytest
from source_helpers import CPU, Uneven, assert_all_same, views

from sslcli.contracts.source import SourceBatch
from sslcli.data.plan import Plan
from sslcli.data.workers import WorkerSource


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_made_ahead_are_those_of_their_own_step(workers: int) -> None:
    data, maker = Uneven(40), views(16, 8)
    maker.later = [(3, views(24)), (4, views(8))]

    def taken(first: int, count: int) -> list[list[SourceBatch]]:
        source = WorkerSource(data, CPU, Plan("uneven", 40, 16, 2), maker, workers)
        try:
            return list(islice(source.batches(first), count))
        finally:
            source.close()
            assert multiprocessing.active_children() == []

    whole = taken(0, 6)
    shapes = [[image.shape[-1] for image in batch.images] for step in whole for batch in step]
    assert shapes == [[16, 16, 8, 8]] * 6 + [[24, 24]] * 2 + [[8, 8]] * 4
    for first in (2, 3, 4):
        assert_all_same(taken(first, 2), whole[first : first + 2])
