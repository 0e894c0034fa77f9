"""The queue of keys: order, wrapping, batches that don't divide its length, state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslcli.modules.queue import Queue


def rows(first: int, last: int) -> Tensor:
    return torch.arange(first, last, dtype=torch.float32).repeat(2, 1).T


def literal(length: int, pushes: list[int]) -> tuple[list[float | None], int]:
    """The ring, one row at a time."""
    ring: list[float | None] = [None] * length
    index = number = 0
    for count in pushes:
        for _ in range(count):
            ring[index] = float(number)
            index, number = (index + 1) % length, number + 1
    return ring, index


@pytest.mark.parametrize("pushes", [[4], [8], [3, 3, 3, 3], [5, 5, 5], [8, 8], [11], [3, 20, 1], [1] * 10])
def test_queue_length_need_not_be_a_multiple_of_the_batch(pushes: list[int]) -> None:
    queue, number = Queue(8, 2), 0
    before = queue.keys.clone()
    for count in pushes:
        queue.push(rows(number, number + count))
        number += count
    ring, index = literal(8, pushes)
    for found, start, value in zip(queue.keys, before, ring, strict=True):
        assert torch.equal(found, start if value is None else torch.full((2,), value))
    assert int(queue.place) == index
    assert bool(queue.full()) == (sum(pushes) >= 8)


def test_queue_starts_as_normalized_random_vectors() -> None:
    torch.manual_seed(0)
    queue = Queue(50, 16)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(50))
    assert queue.keys.std() == pytest.approx(0.25, rel=0.1)
    torch.manual_seed(0)
    assert torch.equal(queue.keys, Queue(50, 16).keys)


def test_queue_keeps_float32_and_no_gradient() -> None:
    queue = Queue(4, 2)
    queue.push(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad


def test_queue_resumes_from_its_state() -> None:
    queue, fresh = Queue(8, 2), Queue(8, 2)
    queue.push(rows(0, 5))
    fresh.load_state_dict(queue.state_dict(), strict=True)
    for each in (queue, fresh):
        each.push(rows(5, 11))
    assert torch.equal(queue.keys, fresh.keys)
    assert int(fresh.pushed) == 11


def test_an_empty_queue_is_refused() -> None:
    with pytest.raises(ValueError, match="not 0"):
        Queue(0, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_queue_push_does_not_wait_for_the_device() -> None:
    queue, keys = Queue(8, 2).cuda(), torch.ones(3, 2, device="cuda")
    queue.push(keys)
    torch.cuda.set_sync_debug_mode("error")
    try:
        queue.push(keys)
        queue.full()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(queue.place) == 6
