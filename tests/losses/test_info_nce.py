"""InfoNCE against a queue and within a batch: literal transcriptions of the papers, properties, edges, monitors."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from sslcli.losses import batch_info_nce, info_nce
from sslcli.losses.info_nce import batch_logits, contrast_logits, contrast_metrics


def embeddings(n: int = 5, k: int = 7, dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2 * n + k, dim, generator=generator, dtype=torch.float64).to(dtype)
    return z[:n], z[n : 2 * n], z[2 * n :]


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def literal_info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> float:
    """MoCo's equation 1: one positive and K negatives."""
    total = 0.0
    for q, positive in zip(query.tolist(), key.tolist(), strict=True):
        top = math.exp(cosine(q, positive) / temperature)
        total += -math.log(top / (top + sum(math.exp(cosine(q, k) / temperature) for k in negatives.tolist())))
    return total / len(query)


def literal_batch_info_nce(query: Tensor, keys: Tensor, temperature: float, first: int = 0) -> float:
    """MoCo v3's ctr(q, k) without its factor 2τ; the queries' own keys begin at row `first`."""
    total = 0.0
    for i, q in enumerate(query.tolist()):
        scores = [math.exp(cosine(q, k) / temperature) for k in keys.tolist()]
        total += -math.log(scores[first + i] / sum(scores))
    return total / len(query)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_is_the_papers_equation(temperature: float) -> None:
    q, k, negatives = embeddings()
    expected = literal_info_nce(q, k, negatives, temperature)
    assert info_nce(q, k, negatives, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_batch_info_nce_is_the_papers_algorithm(temperature: float) -> None:
    q, k, _ = embeddings()
    expected = literal_batch_info_nce(q, k, temperature)
    assert batch_info_nce(q, k, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_looks_for_its_own_keys_among_everyone_s(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    q, k, _ = embeddings(6)
    module = sys.modules["sslcli.losses.info_nce"]
    monkeypatch.setattr(module, "all_gather", lambda own: torch.nn.functional.normalize(k, dim=1))
    monkeypatch.setattr(module, "rank", lambda: rank)
    own = slice(2 * rank, 2 * rank + 2)
    expected = literal_batch_info_nce(q[own], k, 0.5, first=2 * rank)
    assert batch_info_nce(q[own], k[own], 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_info_nce_gradient_is_right_for_all_that_require_one() -> None:
    inputs = [z.clone().requires_grad_() for z in embeddings(3, 4, 3)]
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(info_nce, (*inputs, temperature))


def test_batch_info_nce_gradient_is_right_and_the_keys_get_none() -> None:
    q, k, _ = (z.clone().requires_grad_() for z in embeddings(3, 1, 3))
    assert torch.autograd.gradcheck(lambda q: batch_info_nce(q, k, 0.5), (q,))
    batch_info_nce(q, k, 0.5).backward()
    assert k.grad is None


def test_a_temperature_tensor_and_a_number_give_the_same() -> None:
    q, k, negatives = embeddings()
    assert torch.equal(info_nce(q, k, negatives, 0.25), info_nce(q, k, negatives, torch.tensor(0.25)))
    assert torch.equal(batch_info_nce(q, k, 0.25), batch_info_nce(q, k, torch.tensor(0.25)))


def test_the_order_of_pairs_and_of_negatives_does_not_matter() -> None:
    q, k, negatives = embeddings()
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(info_nce(q[order], k[order], negatives.flip(0), 0.2), info_nce(q, k, negatives, 0.2))
    torch.testing.assert_close(batch_info_nce(q[order], k[order], 0.2), batch_info_nce(q, k, 0.2))


def test_a_query_s_key_must_stand_in_its_row() -> None:
    q, k, negatives = embeddings()
    assert abs(info_nce(q, k.roll(1, 0), negatives, 0.5) - info_nce(q, k, negatives, 0.5)) > 1e-3
    assert abs(batch_info_nce(q, k.roll(1, 0), 0.5) - batch_info_nce(q, k, 0.5)) > 1e-3


def test_the_length_of_the_embeddings_does_not_matter() -> None:
    q, k, negatives = embeddings()
    s = torch.tensor([[0.01], [3.0], [1.0], [50.0], [7.0]], dtype=torch.float64)
    torch.testing.assert_close(info_nce(q * s, k / s, negatives * 9, 0.2), info_nce(q, k, negatives, 0.2))
    torch.testing.assert_close(batch_info_nce(q * s, k / s, 0.2), batch_info_nce(q, k, 0.2))


def test_a_batch_of_one_has_a_loss_against_a_queue_and_none_within_itself() -> None:
    q, k, negatives = embeddings(1)
    expected = literal_info_nce(q, k, negatives, 0.2)
    assert info_nce(q, k, negatives, 0.2).item() == pytest.approx(expected, rel=1e-12)
    q = q.clone().requires_grad_()
    loss = batch_info_nce(q, k, 0.2)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_equal_embeddings_cost_the_logarithm_of_the_candidates() -> None:
    z = torch.ones(4, 3, dtype=torch.float64)
    assert info_nce(z, z, torch.ones(7, 3, dtype=torch.float64), 0.1).item() == pytest.approx(math.log(8))
    assert batch_info_nce(z, z, 0.1).item() == pytest.approx(math.log(4))


def test_rows_of_zeros_give_no_nan() -> None:
    q, k, negatives = (torch.zeros_like(z).requires_grad_() for z in embeddings())
    loss = info_nce(q, k, negatives, 0.2) + batch_info_nce(q, k, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(8) + math.log(5))
    assert all(bool(z.grad.isfinite().all()) for z in (q, k, negatives))


def test_a_small_temperature_neither_overflows_nor_loses_the_small_losses() -> None:
    q = torch.tensor([[1.0, 0.0]])
    assert info_nce(q, q, -q, 0.1).item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-4)  # float32
    assert info_nce(q, -q, q, 1e-3).item() == pytest.approx(2000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    q, k, negatives = embeddings(dtype=dtype)
    wide = [z.float() for z in (q, k, negatives)]
    for found, expected in (
        (info_nce(q, k, negatives, 0.1), info_nce(*wide, 0.1)),
        (batch_info_nce(q, k, 0.1), batch_info_nce(*wide[:2], 0.1)),
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_autocast_does_not_reach_the_losses() -> None:
    q, k, negatives = embeddings(16, 32, 32, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(q, k, negatives, 0.1), batch_info_nce(q, k, 0.1)
    assert torch.equal(torch.stack(inside), torch.stack((info_nce(q, k, negatives, 0.1), batch_info_nce(q, k, 0.1))))


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    q, k, negatives = embeddings()
    with pytest.raises(ValueError, match=r"equal shape.*\(5, 4\) and \(4, 4\)"):
        info_nce(q, k[:4], negatives, 0.5)
    with pytest.raises(ValueError, match=r"\(K, 4\) with K of 1 or more.*\(7, 3\)"):
        info_nce(q, k, negatives[:, :3], 0.5)
    with pytest.raises(ValueError, match=r"not \(0, 4\)"):
        info_nce(q, k, negatives[:0], 0.5)
    with pytest.raises(ValueError, match="positive, not 0"):
        info_nce(q, k, negatives, 0)
    with pytest.raises(ValueError, match=r"equal shape.*\(5, 4\) and \(5, 3\)"):
        batch_info_nce(q, k[:, :3], 0.5)
    with pytest.raises(ValueError, match="positive, not -1"):
        batch_info_nce(q, k, -1)


@pytest.mark.parametrize("among", [False, True])
def test_metrics_count_who_stands_before_the_positive(among: bool) -> None:
    q, noise, negatives = embeddings(9, 24)
    k = q + 1.5 * noise
    if among:
        candidates, rows = k.tolist(), batch_logits(q, k, 0.2)
        positive = rows.diagonal()
    else:
        candidates = negatives.tolist()
        positive, rows = contrast_logits(q, k, negatives, 0.2)
    top1, top5, own, others = 0, 0, [], []
    for i, query in enumerate(q.tolist()):
        score = cosine(query, k[i].tolist())
        rest = [cosine(query, c) for j, c in enumerate(candidates) if not (among and j == i)]
        before = sum(other > score for other in rest)
        top1, top5 = top1 + (before < 1), top5 + (before < 5)
        own.append(score)
        others += rest
    found = contrast_metrics(positive, rows, 0.2, among=among)
    assert 0 < top1 < top5 < 9  # else it would show nothing
    assert found["contrast_top1"].item() == pytest.approx(top1 / 9)
    assert found["contrast_top5"].item() == pytest.approx(top5 / 9)
    assert found["pos_cos"].item() == pytest.approx(sum(own) / len(own))
    assert found["neg_cos"].item() == pytest.approx(sum(others) / len(others))


def test_who_ties_with_the_positive_stands_before_it() -> None:
    z = torch.ones(8, 3)
    logits = batch_logits(z, z, 0.2)
    found = contrast_metrics(logits.diagonal(), logits, 0.2, among=True)
    assert found["contrast_top1"].item() == found["contrast_top5"].item() == 0
    assert found["neg_cos"].item() == pytest.approx(1)


def test_metrics_of_a_single_key_are_defined() -> None:
    logits = batch_logits(torch.ones(1, 3), torch.ones(1, 3), 0.2)
    found = contrast_metrics(logits.diagonal(), logits, 0.2, among=True)
    assert found["contrast_top1"].item() == 1
    assert found["neg_cos"].item() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_losses_on_cuda_never_wait_for_the_device() -> None:
    q, k, negatives = (z.cuda().requires_grad_() for z in embeddings(32, 64, 16, torch.float32))
    temperature = torch.tensor(0.5, device="cuda")
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = info_nce(q, k, negatives, temperature) + batch_info_nce(q, k, 0.2)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    expected = info_nce(q.cpu(), k.cpu(), negatives.cpu(), 0.5) + batch_info_nce(q.cpu(), k.cpu(), 0.2)
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-5)
