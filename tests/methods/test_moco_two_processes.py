"""The MoCo family on two processes: the joined batch's queue and loss, and keys that are encoded in shuffled groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from method_helpers import Pooled
from torch import Tensor

from sslcli.contracts.data import DataInfo
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, View
from sslcli.methods.moco_v2 import MoCoV2
from sslcli.methods.moco_v3 import MoCoV3
from sslcli.modules.shuffle import shuffled
from sslcli.modules.sync_norm import synchronize_batch_norm
from sslcli.randomness import hash_bits

pytestmark = pytest.mark.slow

COUNT = 32  #: images in the joined batch
HALF = COUNT // 2


def build(cls: type[Method], **options: Any) -> Method:
    torch.manual_seed(0)
    head = {"output_dim": 5} if cls is MoCoV2 else {"hidden_dim": 8, "output_dim": 5}
    data = DataInfo("random", 3, (2, 2), (0.5,) * 3, (0.2,) * 3)
    values = {"projector": head, **options}
    return cls(Pooled(), cls.Options.parse(values), RunInfo(10, 5, 2, COUNT, 1, data)).double()


def pictures(step: int) -> Tensor:
    """Two views of the joined batch."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2, COUNT, 3, 2, 2, generator=generator, dtype=torch.float64)


def run(cls: type[Method], rows: slice, *, synced: bool, **options: Any) -> dict[str, Tensor]:
    """Two steps without an optimizer: losses, the keys of the second, the queues."""
    method = build(cls, **options)
    if synced:
        synchronize_batch_norm(method, torch.device("cpu"))
    losses = []
    for step in range(2):
        images = pictures(step)
        out = method(Batch([View(view[rows]) for view in images], None, torch.arange(COUNT)[rows], {}))
        with torch.no_grad():
            method.after_step([out.carry], Progress(step + 1, 10, 5))
        losses.append(out.loss.detach())
    queues = {name: value for name, value in method.state_dict().items() if name.startswith("queues.")}
    return {"losses": torch.stack(losses), **out.carry, **queues}


CASES: dict[str, Any] = {
    "moco_v2": lambda rows: run(MoCoV2, rows, synced=True, queue_size=11, symmetric=True),
    "moco_v3": lambda rows: run(MoCoV3, rows, synced=True, predictor={"hidden_dim": 8}),
    "shuffled": lambda rows: run(MoCoV2, rows, synced=False, queue_size=11),
    "unshuffled": lambda rows: run(MoCoV2, rows, synced=False, queue_size=11, shuffle_bn=False),
}


def shuffle(rows: slice) -> dict[str, Tensor]:
    """The inputs of a network, of images that hold their own number, for the numbers 5, 6 and 5; and the results."""
    own = torch.arange(float(COUNT)).view(-1, 1, 1, 1).repeat(1, 2, 2, 2)[rows]
    own = own.contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        seen.append(x[:, 0, 0, 0].clone())
        return x.flatten(1)[:, :3] * 10

    back = [shuffled(network, own, torch.tensor(number)) for number in (5, 6, 5)]
    return {"seen": torch.stack(seen), "back": torch.stack(back)}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        rows = slice(HALF * rank, HALF * (rank + 1))
        found = {name: case(rows) for name, case in CASES.items()} | {"shuffle": shuffle(rows)}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


Found = list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The results of two processes, started once for all tests."""
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_shuffled_results_come_back_in_the_order_of_the_images(two: Found) -> None:
    for rank in range(2):
        expected = torch.arange(HALF * rank, HALF * (rank + 1.0)).view(-1, 1).expand(3, -1, 3) * 10
        assert torch.equal(two[rank]["shuffle"]["back"], expected)


def test_shuffled_groups_are_mixed_and_hold_every_image_once(two: Found) -> None:
    for groups in zip(*(found["shuffle"]["seen"] for found in two), strict=True):
        assert torch.equal(torch.cat(groups).sort().values, torch.arange(float(COUNT)))
        for group in groups:
            assert HALF // 4 < int((group < HALF).sum()) < HALF * 3 // 4


def test_a_shuffle_is_a_function_of_its_number(two: Found) -> None:
    for found in two:
        first, other, again = found["shuffle"]["seen"]
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["moco_v2", "moco_v3"])
def test_two_processes_with_synchronized_norms_are_one(name: str, two: Found) -> None:
    alone = CASES[name](slice(None))
    torch.testing.assert_close((two[0][name]["losses"] + two[1][name]["losses"]) / 2, alone["losses"])
    for key in (key for key in alone if key.startswith("queues.")):
        torch.testing.assert_close(two[0][name][key], alone[key])


@pytest.mark.parametrize("name", ["moco_v2", "shuffled"])
def test_queues_are_equal_on_both_processes(name: str, two: Found) -> None:
    names = [key for key in two[0][name] if key.startswith("queues.")]
    assert names
    assert all(torch.equal(two[0][name][key], two[1][name][key]) for key in names)


def test_moco_keys_are_normalized_in_shuffled_groups(two: Found) -> None:
    """Each key is the momentum encoder's of its image within the group that the shuffle has put it into."""
    encoder: Any = build(MoCoV2, queue_size=11).momentum_encoder
    images = pictures(1)[1]
    order = torch.argsort(hash_bits(torch.tensor(COUNT), torch.arange(COUNT)))  # one batch has been pushed before
    keys = torch.empty(COUNT, 5, dtype=torch.float64)
    for group in order.split(HALF):
        keys[group] = torch.nn.functional.normalize(encoder(images[group]), dim=1)
    for rank, (found, expected) in enumerate(zip(two, keys.split(HALF), strict=True)):
        torch.testing.assert_close(found["shuffled"]["keys0"], expected)
        alone = torch.nn.functional.normalize(encoder(images[HALF * rank : HALF * (rank + 1)]), dim=1)
        torch.testing.assert_close(found["unshuffled"]["keys0"], alone)
        assert not torch.allclose(alone, expected, atol=1e-3)
