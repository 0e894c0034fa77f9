"""`training.drop_last: false`: an epoch's rest is a last, smaller step, cut into equal parts like any other."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from run_helpers import method_config, newest
from small_options import quick
from source_helpers import CPU, Numbered, Uneven, assert_all_same, views
from stream_helpers import Counted

from sslcli.contracts.errors import UserError
from sslcli.contracts.source import Source, SourceBatch
from sslcli.data import workers as workers_module
from sslcli.data.plan import Plan
from sslcli.data.source import open_source
from sslcli.data.workers import WorkerSource
from sslcli.plugins import find
from sslcli.training.setup import build, plan
from sslcli.training.train import train

METHODS = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]


def whole(length: int, batch_size: int, *arguments: int) -> Plan:
    return Plan("numbered", length, batch_size, *arguments, drop_last=False)


def test_an_epoch_shows_every_image_once_and_its_last_step_has_the_rest() -> None:
    plan = whole(50, 8)
    assert plan.steps_per_epoch == 7
    for number in range(2):
        steps = list(islice(plan.steps(7 * number), 7))
        assert [len(step[0].index) for step in steps] == [8] * 6 + [2]
        assert {step[0].epoch for step in steps} == {number}
        assert torch.cat([step[0].index for step in steps]).sort().values.tolist() == list(range(50))
        assert [step[0].first for step in steps] == list(range(0, 50, 8))


def test_without_a_rest_nothing_changes() -> None:
    dropping, keeping = Plan("numbered", 48, 8), whole(48, 8)
    assert keeping.steps_per_epoch == dropping.steps_per_epoch == 6
    for one, other in zip(islice(dropping.steps(3), 8), islice(keeping.steps(3), 8), strict=True):
        assert torch.equal(one[0].index, other[0].index)


@pytest.mark.parametrize(("world_size", "accumulate", "part"), [(1, 4, 5), (2, 1, 11), (2, 3, 3), (4, 2, 2)])
def test_ranks_and_micro_batches_have_equal_parts_of_the_rest(world_size: int, accumulate: int, part: int) -> None:
    ranks = [whole(70, 48, accumulate, 1, rank, world_size) for rank in range(world_size)]
    assert {each.steps_per_epoch for each in ranks} == {2}
    last = [next(each.steps(1)) for each in ranks]
    assert {len(micro.index) for step in last for micro in step} == {part}
    in_order = [last[rank][micro] for micro in range(accumulate) for rank in range(world_size)]
    rest = next(whole(70, 48, 1, 1).steps(1))[0].index
    assert torch.equal(torch.cat([each.index for each in in_order]), rest[: part * world_size * accumulate])


@pytest.mark.parametrize(("length", "accumulate"), [(49, 1), (51, 2), (48 + 7, 4)])
def test_a_rest_of_fewer_than_two_images_for_a_part_is_left_out_and_said(
    length: int, accumulate: int, messages: list[str]
) -> None:
    source = open_source(Numbered(length), CPU, 8, accumulate, views=views(), drop_last=False)
    assert source.steps_per_epoch == 6
    assert [line for line in messages if f"{length - 48} of {length} images" in line and "drop_last" in line]


def test_a_stream_which_leaves_nothing_out_does_not_take_it() -> None:
    stream = Counted([8, 8])
    with pytest.raises(UserError, match=r"^training\.drop_last: a stream leaves out no images between epochs[^\n]*$"):
        open_source(stream, CPU, 4, views=views(), drop_last=False)


def take(source: Source, step: int, count: int) -> list[list[SourceBatch]]:
    return list(islice(source.batches(step), count))


@pytest.mark.parametrize("step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 6, 13))])
@pytest.mark.parametrize("size", [None, 3])
def test_workers_make_the_smaller_batches_too_from_any_step(
    step: int, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size is not None:  # a full micro-batch comes in more slices than the smaller one
        monkeypatch.setattr(workers_module, "SLICE", size)
    data = Uneven(53)
    plan = Plan("uneven", 53, 8, 2, 3, drop_last=False)
    source = WorkerSource(data, CPU, plan, views(), 0)
    found = take(source, 0, 16)
    assert [[len(batch.index) for batch in batches] for batches in found[5:8]] == [[4, 4], [2, 2], [4, 4]]
    assert all(len(image) == len(batch.index) for batches in found for batch in batches for image in batch.images)
    assert_all_same(found[step:], take(source, step, 16 - step))
    source.close()


@pytest.mark.parametrize("method", quick(METHODS, "simclr", "moco_v2", "swav"))
def test_every_method_makes_the_smaller_step(method: str, tmp_path) -> None:
    config = method_config(method, "data.count=12", "training.epochs=2", "training.drop_last=false")
    session = build(config)
    assert plan(session)["steps_per_epoch"] == 2
    assert train(config, tmp_path / "run").step == 4
    assert newest(tmp_path / "run").step == 4
