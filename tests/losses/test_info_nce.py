"""InfoNCE against negatives and within a batch, EqCo, and their monitors: literal transcriptions and edges."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from literal import cosine, found, mean, rows
from torch import Tensor

from sslcli.losses import batch_info_nce, batch_info_nce_and_metrics, info_nce

QUERY, KEY, NEGATIVES = rows(5, 4), rows(5, 4, seed=1), rows(7, 4, seed=2)


def literal_eqco(query: Tensor, key: Tensor, negatives: Tensor, temperature: float, weight: float = 1.0) -> float:
    """MoCo's equation 1, one positive and K negatives; with EqCo's weight of the negatives."""
    total = 0.0
    for q, positive in zip(query.tolist(), key.tolist(), strict=True):
        top = math.exp(cosine(q, positive) / temperature)
        rest = sum(math.exp(cosine(q, k) / temperature) for k in negatives.tolist())
        total += -math.log(top / (top + weight * rest))
    return total / len(query)


def literal_batch_info_nce(query: Tensor, keys: Tensor, temperature: float, first: int = 0) -> float:
    """MoCo v3's ctr(q, k) without its factor 2τ; the queries' own keys begin at row `first`."""
    total = 0.0
    for i, q in enumerate(query.tolist()):
        scores = [math.exp(cosine(q, k) / temperature) for k in keys.tolist()]
        total += -math.log(scores[first + i] / sum(scores))
    return total / len(query)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("count", [5, 1])
def test_info_nce_is_the_papers_equation(temperature: float, count: int) -> None:
    expected = literal_eqco(QUERY[:count], KEY[:count], NEGATIVES, temperature)
    assert info_nce(QUERY[:count], KEY[:count], NEGATIVES, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_batch_info_nce_is_the_papers_algorithm(temperature: float) -> None:
    expected = literal_batch_info_nce(QUERY, KEY, temperature)
    assert batch_info_nce(QUERY, KEY, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 7.0, 65536.0])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_eqco_is_the_papers_formula(alpha: float, temperature: float) -> None:
    expected = literal_eqco(QUERY, KEY, NEGATIVES, temperature, alpha / 7)
    assert info_nce(QUERY, KEY, NEGATIVES, temperature, alpha).item() == pytest.approx(expected, rel=1e-12)


def test_eqco_is_info_nce_where_alpha_is_the_number_of_negatives() -> None:
    z = (QUERY, KEY, NEGATIVES)
    assert torch.equal(info_nce(*z, 0.2, alpha=7), info_nce(*z, 0.2))
    torch.testing.assert_close(info_nce(*z, 0.2, alpha=7 * 12), info_nce(QUERY, KEY, NEGATIVES.repeat(12, 1), 0.2))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_looks_for_its_own_keys_among_everyone_s(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    q, k = rows(6, 4), rows(6, 4, seed=1)
    module = sys.modules["sslcli.losses.info_nce"]
    monkeypatch.setattr(module, "all_gather", lambda own: F.normalize(k, dim=1))
    monkeypatch.setattr(module, "rank", lambda: rank)
    own = slice(2 * rank, 2 * rank + 2)
    expected = literal_batch_info_nce(q[own], k, 0.5, first=2 * rank)
    assert batch_info_nce(q[own], k[own], 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_the_order_of_negatives_does_not_matter() -> None:
    torch.testing.assert_close(info_nce(QUERY, KEY, NEGATIVES.flip(0), 0.2), info_nce(QUERY, KEY, NEGATIVES, 0.2))


def test_a_single_key_costs_nothing_within_its_batch() -> None:
    q, k = torch.ones(1, 3, requires_grad=True), torch.ones(1, 3)
    loss, metrics = batch_info_nce_and_metrics(q, k, 0.2)
    loss.backward()
    assert loss.item() == metrics["neg_cos"].item() == 0
    assert metrics["contrast_top1"].item() == 1
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_equal_embeddings_cost_the_logarithm_of_the_candidates_and_no_key_is_found() -> None:
    z, negatives = torch.ones(8, 3, dtype=torch.float64), torch.ones(7, 3, dtype=torch.float64)
    assert info_nce(z, z, negatives, 0.1).item() == pytest.approx(math.log(8))
    assert info_nce(z, z, negatives, 0.1, 100).item() == pytest.approx(math.log(101))
    loss, metrics = batch_info_nce_and_metrics(z, z, 0.1)
    assert loss.item() == pytest.approx(math.log(8))
    assert metrics["contrast_top1"].item() == metrics["contrast_top5"].item() == 0
    assert metrics["neg_cos"].item() == pytest.approx(1)


def test_a_small_temperature_neither_overflows_nor_loses_the_small_losses() -> None:
    q = torch.tensor([[1.0, 0.0]])
    assert info_nce(q, q, -q, 0.1).item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-4)  # float32
    assert info_nce(q, -q, q, 1e-3).item() == pytest.approx(2000)


def test_the_metrics_are_shares_and_means_over_all_pairs() -> None:
    q, noise = rows(2, 9, 4)
    k = q + 1.5 * noise  # some keys are near, some are not
    scores = [
        (cosine(a, k[i].tolist()), [cosine(a, b) for j, b in enumerate(k.tolist()) if j != i])
        for i, a in enumerate(q.tolist())
    ]
    expected = found(scores)
    assert 0 < expected["contrast_top1"] < expected["contrast_top5"] < 1
    expected |= {"pos_cos": mean([s for s, _ in scores]), "neg_cos": mean([c for _, row in scores for c in row])}
    metrics = batch_info_nce_and_metrics(q, k, 0.2)[1]
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


def test_wrong_negatives_and_alphas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(K, 4\) with K of 1 or more are needed, not \(7, 3\)"):
        info_nce(QUERY, KEY, NEGATIVES[:, :3], 0.5)
    with pytest.raises(ValueError, match=r"not \(0, 4\)"):
        info_nce(QUERY, KEY, NEGATIVES[:0], 0.5)
    with pytest.raises(ValueError, match="alpha must be positive, not 0"):
        info_nce(QUERY, KEY, NEGATIVES, 0.5, 0)
