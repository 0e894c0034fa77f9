"""One process of each machine makes a cache; the others wait for it, for any time, and read the same pixels."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cache_helpers import write
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.data.cache.dataset import CachedDataset
from sslcli.datasets.images import Images, ImagesOptions
from sslcli.distributed import first_of_machine

IMAGES = 6


class Counted(Images):
    """Notes what it was asked to decode."""

    def __init__(self, options: ImagesOptions) -> None:
        super().__init__(options)
        self.decoded: list[int] = []

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        self.decoded.append(index)
        return super().image_for(index, wanted)


def cached(folder: Path, kind: Any, cache: str) -> dict[str, Any]:
    """What this process decoded, and whether it reads the right pixels."""
    data = Counted(ImagesOptions(root=folder / "photographs", cache_dir=folder / cache))
    both = CachedDataset(data, 66, kind, workers=0)
    both.prepare()
    dist.barrier()  # as a run does, before anything of the first process's is gone
    decoded = list(data.decoded)
    right = all(torch.equal(both.image_for(index, None), data.image(index)) for index in range(IMAGES))
    return {"decoded": decoded, "right": right and data.decoded == decoded}


def refused() -> None:
    raise UserError("data.cache: no room")


def interrupted() -> None:
    raise KeyboardInterrupt


def slow() -> str:
    time.sleep(4)  # longer than others may wait in the run's own group
    return f"done by {dist.get_rank()}"


def outcome(work: Callable[[], Any]) -> Any:
    try:
        return first_of_machine(work)
    except BaseException as error:
        return [type(error).__name__, str(error)]


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    try:
        os.environ["LOCAL_RANK"] = str(rank)
        found["memory"] = cached(path, "memory", "one")
        found["disk"] = cached(path, "disk", "one")
        found["refused"] = outcome(refused)
        found["interrupted"] = outcome(interrupted)
        os.environ["LOCAL_RANK"] = "0"
        found["machines, memory"] = cached(path, "memory", "two")
        found["machines, disk"] = cached(path, "disk", f"machine{rank}")
        found["one machine refused"] = outcome(refused if rank == 1 else lambda: "made")
        os.environ["LOCAL_RANK"] = str(rank)
        dist.barrier()
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
        found["slow"] = outcome(slow)
    finally:
        dist.destroy_process_group()
    (path / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw; one start serves every test."""
    folder = tmp_path_factory.mktemp("two")
    for number in range(IMAGES):
        write(folder / "photographs" / f"{number}.png", 30, 20 + number, number)
    torch.multiprocessing.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


pytestmark = pytest.mark.slow


def test_the_first_process_of_a_machine_decodes_and_the_others_read(both: list[dict[str, Any]]) -> None:
    made, read = ({"decoded": decoded, "right": True} for decoded in (list(range(IMAGES)), []))
    for kind in ("memory", "disk"):
        assert [found[kind] for found in both] == [made, read]
        assert [found[f"machines, {kind}"] for found in both] == [made, made]


def test_an_error_of_the_first_process_is_that_of_all_on_its_machine(both: list[dict[str, Any]]) -> None:
    error = ["UserError", "data.cache: no room"]
    assert [found["refused"] for found in both] == [error, error]
    assert [found["one machine refused"] for found in both] == ["made", error]


def test_an_interruption_of_the_first_process_ends_the_wait(both: list[dict[str, Any]]) -> None:
    assert both[0]["interrupted"] == ["KeyboardInterrupt", ""]
    assert both[1]["interrupted"][0] == "SslError"


def test_the_others_wait_longer_than_for_a_message(both: list[dict[str, Any]]) -> None:
    assert both[0]["slow"] == both[1]["slow"] == "done by 0"
