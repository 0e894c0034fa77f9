"""InfoNCE against a queue, stretch by stretch: the same as with all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.losses import eqco, info_nce, stretches
from sslcli.losses.info_nce import contrast_logits, contrast_metrics
from sslcli.losses.queue_info_nce import queue_info_nce


def embeddings(n: int = 5, k: int = 23, dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Queries, keys and a queue of unit vectors."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2 * n + k, dim, generator=generator, dtype=torch.float64)
    return z[:n].to(dtype), z[n : 2 * n].to(dtype), F.normalize(z[2 * n :], dim=1).to(dtype)


@pytest.fixture(params=[1, 3, 8, 1000])
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keys in a stretch: one alone, lengths that leave a rest, all at once."""
    monkeypatch.setitem(stretches._ELEMENTS, "cpu", 5 * request.param)
    return request.param


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_the_loss_and_its_gradient_are_those_of_info_nce(length: int, temperature: float) -> None:
    q, k, keys = embeddings()
    mine, whole = q.clone().requires_grad_(), q.clone().requires_grad_()
    loss, expected = queue_info_nce(mine, k, keys, temperature)[0], info_nce(whole, k, keys, temperature)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine.grad, whole.grad, rtol=1e-10, atol=1e-12)


def test_weighted_negatives_are_eqco(length: int) -> None:
    q, k, keys = embeddings()
    loss, _ = queue_info_nce(q, k, keys, 0.2, 100 / len(keys))
    torch.testing.assert_close(loss, eqco(q, k, keys, 0.2, alpha=100), rtol=1e-12, atol=0)


def test_the_monitors_are_those_of_all_logits(length: int) -> None:
    q, k, keys = embeddings()
    k = q + 0.7 * k  # so that some keys are found, and some are not
    _, metrics = queue_info_nce(q, k, keys, 0.2)
    expected = contrast_metrics(*contrast_logits(q, k, keys, 0.2), 0.2, among=False)
    assert 0 < expected["contrast_top1"] < expected["contrast_top5"]
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-10, atol=1e-12)
        assert not metrics[name].requires_grad


def test_the_gradient_is_right_for_query_and_key(length: int) -> None:
    q, k, keys = embeddings(3, 7, 3)
    inputs = (q.requires_grad_(), k.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, k: queue_info_nce(q, k, keys, 0.5)[0], inputs)


def test_the_queue_gets_no_gradient() -> None:
    q, k, keys = (z.clone().requires_grad_() for z in embeddings())
    queue_info_nce(q, k, keys, 0.5)[0].backward()
    assert q.grad is not None
    assert keys.grad is None


def test_nothing_of_the_size_of_all_logits_is_kept_for_the_backward() -> None:
    q, k, keys = embeddings(8, 4000)
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        queue_info_nce(q.requires_grad_(), k, keys, 0.5)
    assert max(sizes) <= 8 * 4


def test_very_small_temperatures_stay_finite(length: int) -> None:
    q, k, keys = embeddings(dtype=torch.float32)
    loss, _ = queue_info_nce(q.requires_grad_(), k, keys, 1e-4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    q, k, keys = embeddings(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = queue_info_nce(q, k, keys.float(), 0.2)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, queue_info_nce(q.float(), k.float(), keys.float(), 0.2)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_nothing_waits_and_the_numbers_are_the_same() -> None:
    q, k, keys = (z.cuda() for z in embeddings(64, 1000, dtype=torch.float32))
    queue_info_nce(q.requires_grad_(), k, keys, 0.2)[0].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = queue_info_nce(q, k, keys, 0.2)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), info_nce(q, k, keys, 0.2).cpu(), rtol=1e-4, atol=1e-5)
