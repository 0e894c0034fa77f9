"""Two processes read disjoint parts of a stream, which together are the batches of one; their cursor is of both."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from draws_helpers import recorded_steps
from run_helpers import assert_same_end, method_config, newest
from stream_run_helpers import PLUGIN, on_tars
from tiny_data import write_tars

from sslcli.plugins import load, register_file
from sslcli.training.setup import build
from sslcli.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 6


def batches(folder: Path, accumulate: int) -> list[list[list[int]]]:
    """The images of each step and micro-batch."""
    steps = recorded_steps(method_config("simclr", *on_tars(folder, f"training.accumulate={accumulate}")), STEPS)
    return [[batch.index.tolist() for batch in step] for step in steps]


def one_of_two(rank: int, output: Path) -> None:
    torch.set_num_threads(1)
    torch.multiprocessing.set_start_method("fork", force=True)  # as in processes that are not spawned
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    store = dist.FileStore(str(output / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    register_file(PLUGIN)
    tars, opened = output / "tars", set[str]()
    cls = load("datasets", "tar_shards")
    read = cls.read

    def recorded(self, shard, position):
        opened.add(self.shards[shard])
        return read(self, shard, position)

    cls.read = recorded
    first = batches(tars, 1)[:4]  # an epoch
    seen = sorted(opened)
    found = {"1": first, "2": batches(tars, 2), "shards": seen}
    (output / f"{rank}.json").write_text(json.dumps(found))
    more = on_tars(tars)
    train(method_config("simclr", *more), output / "whole")
    train(method_config("simclr", *more, "training.max_steps=6"), output / "parts")
    train(method_config("simclr", *more, "training.workers=1"), output / "parts", resume=True)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("two")
    write_tars(output / "tars", (8, 8, 8, 8))
    torch.multiprocessing.spawn(one_of_two, (output,), nprocs=2)
    register_file(PLUGIN)
    return output


@pytest.mark.parametrize("accumulate", [1, 2])
def test_their_parts_are_disjoint_and_together_the_batch_of_one(two: Path, accumulate: int) -> None:
    ranks = [json.loads((two / f"{rank}.json").read_text())[str(accumulate)] for rank in range(2)]
    expected = batches(two / "tars", accumulate)
    for alone, first, second in zip(expected, *ranks, strict=False):
        assert [one + other for one, other in zip(first, second, strict=True)] == alone
        assert len({index for micro in alone for index in micro}) == 8


def test_a_run_of_two_processes_resumes_to_the_bit(two: Path) -> None:
    assert newest(two / "whole").document["world_size"] == 2
    assert_same_end(two / "whole", two / "parts")
    assert newest(two / "whole").document["cursor"] == newest(two / "parts").document["cursor"]


def test_the_cursor_of_two_is_that_of_one(two: Path, tmp_path: Path) -> None:
    train(method_config("simclr", *on_tars(two / "tars")), tmp_path / "alone")
    assert newest(tmp_path / "alone").document["cursor"] == newest(two / "whole").document["cursor"]
    source = build(method_config("simclr", *on_tars(two / "tars"))).source
    source.restore(newest(two / "whole").document["cursor"])
    assert next(source.batches(12))[0].epoch == 3
