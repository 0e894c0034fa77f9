"""InfoNCE against a queue, chunk by chunk: the same as with all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from literal import rows
from torch import Tensor

from sslcli.losses import info_nce, queue_info_nce_and_metrics, unit_rows
from sslcli.losses.contrast import pair_logits


def embeddings(n: int = 5, k: int = 23, dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Queries, keys and a queue of unit vectors."""
    return tuple(z.to(dtype) for z in (rows(n, dim), rows(n, dim, seed=1), unit_rows(rows(k, dim, seed=2))))


@pytest.fixture(params=[1, 3, 8, 1000], autouse=True)
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keys in a chunk: a single one, lengths that leave a remainder, all at once."""
    monkeypatch.setattr("sslcli.losses.queue_info_nce._CHUNK_CPU", 5 * request.param)


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_the_loss_and_its_gradient_are_those_of_info_nce(temperature: float) -> None:
    q, k, keys = embeddings()
    mine, whole = q.clone().requires_grad_(), q.clone().requires_grad_()
    loss, expected = queue_info_nce_and_metrics(mine, k, keys, temperature)[0], info_nce(whole, k, keys, temperature)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine.grad, whole.grad, rtol=1e-10, atol=1e-12)


def test_weighted_negatives_are_eqco() -> None:
    q, k, keys = embeddings()
    loss, _ = queue_info_nce_and_metrics(q, k, keys, 0.2, 100 / len(keys))
    torch.testing.assert_close(loss, info_nce(q, k, keys, 0.2, alpha=100), rtol=1e-12, atol=0)


def test_the_metrics_are_those_of_all_logits() -> None:
    q, k, keys = embeddings()
    k = q + 0.7 * k  # so that some keys are found, and some are not
    expected = pair_logits(q, k, 0.2, negatives=keys).metrics
    assert 0 < expected["contrast_top1"] < expected["contrast_top5"]
    torch.testing.assert_close(queue_info_nce_and_metrics(q, k, keys, 0.2)[1], expected, rtol=1e-10, atol=1e-12)


def test_nothing_of_the_size_of_all_logits_is_kept_for_the_backward() -> None:
    q, k, keys = embeddings(8, 4000)
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        queue_info_nce_and_metrics(q.requires_grad_(), k, keys, 0.5)
    assert max(sizes) <= 8 * 4


def test_very_small_temperatures_stay_finite() -> None:
    q, k, keys = embeddings(dtype=torch.float32)
    loss, _ = queue_info_nce_and_metrics(q.requires_grad_(), k, keys, 1e-4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(q.grad).all()
