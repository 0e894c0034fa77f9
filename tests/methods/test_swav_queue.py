"""SwAV's queue: its length, when it is filled and used, and two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from method_helpers import COUNT, PER_EPOCH, STEPS
from swav_helpers import batch, build, descend, embed
from torch import Tensor

from sslcli.contracts.method import Progress, View
from sslcli.losses import sinkhorn, swapped_prediction
from sslcli.modules.sync_norm import synchronize_batch_norm


def test_swav_queue_smaller_than_the_batch_is_no_queue_and_does_not_crash() -> None:
    short, none = build(queue_size=COUNT - 1, queue_start_epoch=0), build(queue_size=0)
    assert list(short.state_dict()) == list(none.state_dict())
    for a, b in zip(descend(short, 0, 3), descend(none, 0, 3), strict=True):
        assert torch.equal(a.loss, b.loss)


@pytest.mark.parametrize(("size", "length"), [(8, 8), (15, 8), (20, 16), (3840, 3840)])
def test_swav_queue_length_is_rounded_down_to_whole_batches(size: int, length: int) -> None:
    assert build(queue_size=size).queue.keys.shape == (length, 2 * 6)


def test_swav_queue_is_filled_from_its_epoch_and_used_once_full() -> None:
    method, none = build(queue_size=16, queue_start_epoch=0.4), build()
    random = method.queue.keys.clone()
    for step, out in enumerate(descend(method, 0, 6)):
        pushed = max(0, step - 2) * COUNT
        assert method.queue.pushed.item() == pushed
        assert torch.equal(method.queue.keys, random) == (pushed == 0)
        none.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("queue.")})
        # Its first two batches come in after steps 2 and 3.
        assert torch.allclose(out.loss, none(batch(seed=step)).loss) == (step < 4), step


def test_swav_queue_is_scored_with_the_current_prototypes() -> None:
    method = build(queue_size=16, queue_start_epoch=0, frozen_steps=0)
    for _ in descend(method, 0, 3):
        pass
    with torch.no_grad():
        method.prototypes.weight.copy_(method.prototypes.weight.roll(3, 1))
    data = batch(seed=3)
    scores = [z @ method.prototypes.weight.T for z in embed(method, data)]
    q = []
    for view, keys in enumerate(method.queue.keys.split(6, dim=1)):
        q.append(sinkhorn(torch.cat((scores[view], keys @ method.prototypes.weight.T)))[:COUNT])
    torch.testing.assert_close(method(data).loss, swapped_prediction(scores, q))


def test_swav_queue_holds_the_last_embeddings_of_each_global_view() -> None:
    method = build(queue_size=16, queue_start_epoch=0)
    seen = [out.carry["embeddings"] for out in descend(method, 0, 3)]
    assert torch.equal(method.queue.keys, torch.cat((seen[2], seen[1])))
    method = build(queue_size=16, queue_start_epoch=0)
    z = embed(method, batch(seed=0))
    torch.testing.assert_close(method(batch(seed=0)).carry["embeddings"], torch.cat(z[:2], dim=1).detach())


def test_swav_queue_takes_every_micro_batch() -> None:
    method = build(queue_size=16, batch_size=16, queue_start_epoch=0)
    found = [method(batch(seed=seed)).carry for seed in range(2)]
    method.after_step(found, Progress(1, STEPS, PER_EPOCH))
    assert torch.equal(method.queue.keys, torch.cat([carry["embeddings"] for carry in found]))


@pytest.mark.parametrize(("size", "kept"), [(COUNT, 16), (12, 12), (20, 16), (32, 0)])
def test_swav_queue_of_another_batch_size_keeps_its_newest_embeddings(size: int, kept: int) -> None:
    method = build(queue_size=20, queue_start_epoch=0)
    seen = [out.carry["embeddings"] for out in descend(method, 0, 3)]
    other = build(queue_size=20, queue_start_epoch=0, batch_size=size)
    other.load_state_dict(method.state_dict())
    if not kept:
        assert other.queue is None
        build(queue_size=20).load_state_dict(other.state_dict())  # and from no queue to one
        return
    newest = torch.cat(seen)[-kept:]
    if size == 20:  # longer than it was: not used before it is full again
        assert torch.equal(other.queue.keys[-kept:], newest)
        assert not other.queue.full()
    elif size == 12:
        assert torch.equal(other.queue.keys, newest)
        assert other.queue.full()
        other.queue.push(seen[0])
        assert torch.equal(other.queue.keys, torch.cat((seen[0], newest[COUNT:])))
    else:
        assert torch.equal(other.queue.keys, method.queue.keys)


@pytest.mark.slow
def test_swav_multi_crop_with_a_queue_is_one_graph_that_serves_every_step() -> None:
    from torch._dynamo.testing import CompileCounter  # slow to import, and processes below import this file

    method, graphs = build(queue_size=16, queue_start_epoch=0), CompileCounter()
    method.compile(fullgraph=True, dynamic=False, backend=graphs)
    for _ in descend(method, 0, 5):
        pass
    assert graphs.frame_count == 1


def two_steps(rows: slice) -> dict[str, Tensor]:
    """The third step's gradients and the queue, of this process's share of each batch, in float64."""
    method = synchronize_batch_norm(build(queue_size=16, queue_start_epoch=0).double(), torch.device("cpu"))
    for step in range(3):
        data = batch(seed=step)
        data.views = [View(view.image[rows].double()) for view in data.views]
        method.zero_grad()
        out = method(data)
        out.loss.backward()
        method.after_step([out.carry], Progress(step + 1, STEPS, PER_EPOCH))
    found = {name: parameter.grad for name, parameter in method.named_parameters()} | {"loss": out.loss.detach()}
    return {**found, "keys": method.queue.keys}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        half = COUNT // 2
        found = two_steps(slice(half * rank, half * rank + half))
        for tensor in found.values():
            dist.all_reduce(tensor)
            tensor /= 2
        if rank == 0:
            torch.save(found, f"{folder}/found.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_swav_on_two_processes_is_swav_on_one_with_the_queue_counted_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    found, alone = torch.load(tmp_path / "found.pt"), two_steps(slice(None))
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
