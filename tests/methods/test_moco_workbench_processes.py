"""The workbench `moco` on two processes: the joined batch's loss and queue, gathered keys, shuffled batch norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from workbench_helpers import COUNT, TOTAL, batch, build

from sslcli.contracts.method import Batch, Progress, View
from sslcli.methods.moco import MoCo
from sslcli.modules.sync_norm import synchronize_batch_norm

pytestmark = pytest.mark.slow

HALF = COUNT // 2

#: Settings, and whether batch norms are synchronized.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "moco_v2": ({"preset": "moco_v2", "both_views_as_queries": True, "reduction": "mean"}, True),
    "simclr": ({"preset": "simclr"}, True),
    "byol": ({"preset": "byol"}, True),
    "vicreg": ({"preset": "vicreg"}, True),
    "bce": ({"loss": "bce", "negatives": "batch", "eqco_alpha": None}, True),
    "own keys": ({"negatives": "batch", "gather_keys": False}, True),
    "shuffled": ({}, False),
    "unshuffled": ({"shuffle_bn": False}, False),
}
ALIKE = [name for name in CASES if name not in ("own keys", "shuffled", "unshuffled")]


def method_of(name: str) -> MoCo:
    knobs, synced = CASES[name]
    method = build(**knobs).double()
    if synced:
        synchronize_batch_norm(method, torch.device("cpu"))
    return method


def part(step: int, rows: slice) -> Batch:
    whole = batch(step)
    return Batch([View(view.image[rows].double()) for view in whole.views], None, whole.index[rows], {})


def run(name: str, rows: slice) -> dict[str, Tensor]:
    """Two steps without an optimizer: losses, a gradient, and what the queue has become."""
    method = method_of(name)
    losses = []
    for step in range(2):
        method.zero_grad()
        out = method(part(step, rows))
        out.loss.backward()
        with torch.no_grad():
            method.after_step([out.carry], Progress(step + 1, TOTAL, 3))
        losses.append(out.loss.detach())
    gradient = method.backbone.linear.weight.grad
    assert gradient is not None
    queue = {"queue": method.queue.keys} if method.queue is not None else {}
    return {"losses": torch.stack(losses), "gradient": gradient, **out.carry, **queue}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save({name: run(name, slice(HALF * rank, HALF * (rank + 1))) for name in CASES}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


Found = list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of two processes found; one start serves every test."""
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_with_synchronized_norms_are_one(name: str, two: Found) -> None:
    alone = run(name, slice(None))
    for key in ("losses", "gradient"):  # DDP averages gradients
        torch.testing.assert_close((two[0][name][key] + two[1][name][key]) / 2, alone[key])


@pytest.mark.parametrize("name", ["shuffled", "unshuffled", "moco_v2"])
def test_the_queue_is_the_same_on_both_processes(name: str, two: Found) -> None:
    assert torch.equal(two[0][name]["queue"], two[1][name]["queue"])


def test_the_queue_takes_the_keys_of_view_2_of_all_processes_then_those_of_view_1(two: Found) -> None:
    queue = two[0]["moco_v2"]["queue"]
    second = [two[rank]["moco_v2"][f"keys{view}"] for view in (1, 0) for rank in (0, 1)]
    rows = torch.cat(second)  # the second step's, of two: they begin where the first step's end
    places = (2 * COUNT + torch.arange(2 * COUNT)) % len(queue)
    torch.testing.assert_close(queue[places], rows)


def test_without_gathering_a_process_has_only_its_own_negatives(two: Found) -> None:
    gathered = run("own keys", slice(None))["losses"]
    apart = (two[0]["own keys"]["losses"] + two[1]["own keys"]["losses"]) / 2
    assert bool((apart < gathered - 0.1).all())  # fewer negatives, a smaller loss


def test_keys_are_normalized_in_groups_of_both_processes_images(two: Found) -> None:
    shuffled, unshuffled = (torch.cat([each[name]["keys1"] for each in two]) for name in ("shuffled", "unshuffled"))
    method = method_of("unshuffled")
    alone = [method.momentum_encoder(part(1, slice(HALF * r, HALF * (r + 1))).views[1].image) for r in range(2)]
    torch.testing.assert_close(unshuffled, torch.nn.functional.normalize(torch.cat(alone), dim=1))
    assert not torch.allclose(shuffled, unshuffled, atol=1e-3)
    assert torch.nn.functional.cosine_similarity(shuffled, unshuffled).mean() > 0.5  # in the images' own order
