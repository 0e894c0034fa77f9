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


def test_a_labeled_queue_has_the_labels_of_its_keys_and_none_before() -> None:
    queue = Queue(5, 2, labeled=True)
    queue.push(rows(0, 3), torch.tensor([7, 8, 9]))
    assert queue.labels.tolist() == [7, 8, 9, -1, -1]
    queue.push(rows(3, 7), torch.arange(3, 7))
    assert queue.labels.tolist() == [5, 6, 9, 3, 4]
    queue.push(rows(0, 2))  # images without labels
    assert queue.labels.tolist() == [5, 6, -1, -1, 4]
    queue.push(rows(0, 8), torch.arange(8))  # more than it holds
    assert [int(key[0]) for key in queue.keys] == queue.labels.tolist()
    assert "labels" in queue.state_dict()
    assert "labels" not in Queue(5, 2).state_dict()


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_the_nearest_key_has_the_largest_product_whatever_the_chunks(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslcli.modules.queue._CHUNK_CPU", chunk)
    generator = torch.Generator().manual_seed(1)
    queue, given = Queue(10, 4), torch.randn(3, 4, generator=generator)
    expected = [max(range(10), key=lambda k: float(row @ queue.keys[k])) for row in given]
    assert queue.nearest(given).tolist() == expected
    queue.keys.copy_(queue.keys[:1].expand(10, 4).clone())
    assert queue.nearest(given).tolist() == [0, 0, 0]  # the first of equal ones
    assert not queue.nearest(given.requires_grad_()).is_floating_point()


def test_the_nearest_key_is_found_in_float32_under_autocast() -> None:
    queue = Queue(2, 2)
    queue.keys.copy_(torch.tensor([[1.0, 0.001], [1.0, 0.002]]))  # equal in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert queue.nearest(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).tolist() == [1, 0]
