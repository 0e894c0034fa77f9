"""Losses over pairs, combined with each source of negatives: literal transcriptions, edges, several processes."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from literal import cosine, dot, found, mean, rows
from torch import Tensor

from sslcli.losses import info_nce, nt_xent
from sslcli.losses.contrast import PairLogits, contrast_bce, contrast_ce, pair_logits

SOURCES = pytest.mark.parametrize("source", ["given", "all", "other_view"])
SPHERE = pytest.mark.parametrize("unit_sphere", [True, False])


def embeddings(n: int = 4, k: int = 7, dim: int = 3) -> tuple[Tensor, ...]:
    """N queries, their keys, N keys of the queries' own view, and K others."""
    return rows(3 * n + k, dim, seed=2).split([n, n, n, k])


def pairs_of(source: str, z: tuple[Tensor, ...], tau: float = 0.3, *, unit_sphere: bool = True) -> PairLogits:
    query, key, own, others = z
    if source == "given":
        return pair_logits(query, key, tau, negatives=others, unit_sphere=unit_sphere)
    return pair_logits(query, key, tau, own=own if source == "all" else None, unit_sphere=unit_sphere)


def scores(source: str, z: tuple[Tensor, ...], unit_sphere: bool) -> list[tuple[float, list[float]]]:
    """Each query's product with its key, and with its negatives."""
    product = cosine if unit_sphere else dot
    query, key, own, given = (part.tolist() for part in z)
    result = []
    for i, q in enumerate(query):
        others = given if source == "given" else [row for j, row in enumerate(key) if j != i]
        if source == "all":
            others = others + [row for j, row in enumerate(own) if j != i]
        result.append((product(q, key[i]), [product(q, k) for k in others]))
    return result


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@SOURCES
@SPHERE
@pytest.mark.parametrize("weight", [1.0, 50.0])
def test_cross_entropy_is_its_formula(source: str, unit_sphere: bool, weight: float) -> None:
    z, each = embeddings(), []
    for positive, others in scores(source, z, unit_sphere):
        top, rest = math.exp(positive / 0.3), sum(math.exp(other / 0.3) for other in others)
        each.append(-math.log(top / (top + weight * rest)))
    loss = contrast_ce(pairs_of(source, z, unit_sphere=unit_sphere), weight)
    assert loss.item() == pytest.approx(mean(each), rel=1e-12)


@SOURCES
@SPHERE
def test_binary_cross_entropy_is_its_formula(source: str, unit_sphere: bool) -> None:
    z, each = embeddings(), []
    for positive, others in scores(source, z, unit_sphere):
        # 1 − σ(l) = σ(−l), which keeps its digits.
        each += [-math.log(sigmoid(positive / 0.3)), *(-math.log(sigmoid(-other / 0.3)) for other in others)]
    pairs = pairs_of(source, z, unit_sphere=unit_sphere)
    assert contrast_bce(pairs).item() == pytest.approx(sum(each) / len(z[0]), rel=1e-12)
    assert contrast_bce(pairs, "mean").item() == pytest.approx(mean(each), rel=1e-12)


@SOURCES
@SPHERE
def test_metrics_are_the_shares_and_means_over_all_pairs(source: str, unit_sphere: bool) -> None:
    z = embeddings(9, 11)
    cosines = scores(source, z, True)
    expected = found(scores(source, z, unit_sphere))
    assert 0 < expected["contrast_top5"] < 1
    expected |= {"pos_cos": mean([s for s, _ in cosines]), "neg_cos": mean([c for _, row in cosines for c in row])}
    pairs = pairs_of(source, z, unit_sphere=unit_sphere)
    assert {name: value.item() for name, value in pairs.metrics.items()} == pytest.approx(expected, rel=1e-12)
    assert len(cosines[0][1]) == pairs.K


def test_with_given_negatives_it_is_info_nce_and_eqco() -> None:
    query, key, _, negatives = z = embeddings()
    pairs = pairs_of("given", z)
    assert torch.equal(contrast_ce(pairs), info_nce(query, key, negatives, 0.3))
    assert torch.equal(contrast_ce(pairs, 50.0 / len(negatives)), info_nce(query, key, negatives, 0.3, 50.0))


def test_on_the_batch_with_keys_that_are_the_queries_it_is_nt_xent_to_the_gradient() -> None:
    z1, z2 = (part.requires_grad_() for part in rows(2, 4, 3))
    both = (contrast_ce(pair_logits(z1, z2, 0.3, own=z1)) + contrast_ce(pair_logits(z2, z1, 0.3, own=z2))) / 2
    reference = nt_xent(z1, z2, 0.3)
    torch.testing.assert_close(both, reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(both, (z1, z2)), torch.autograd.grad(reference, (z1, z2)))


@SOURCES
def test_off_the_sphere_lengths_matter_as_the_temperature_does(source: str) -> None:
    query, key, own, others = z = embeddings()
    for loss in (contrast_ce, contrast_bce):
        first, second = (loss(pairs_of(source, (q, key, own, others), unit_sphere=False)) for q in (query, 2 * query))
        assert abs(first - second) > 1e-3
        torch.testing.assert_close(second, loss(pairs_of(source, z, 0.15, unit_sphere=False)))


@pytest.mark.parametrize("with_own", [True, False])
def test_a_batch_of_one_image_has_no_negatives(with_own: bool) -> None:
    query, key, own = (part.requires_grad_() for part in rows(3, 1, 3))
    pairs = pair_logits(query, key, 0.3, own=own if with_own else None)
    assert pairs.K == 0
    for weight in (1.0, 50.0):
        (gradient,) = torch.autograd.grad(contrast_ce(pairs, weight), query, retain_graph=True)
        assert contrast_ce(pairs, weight).item() == 0
        assert torch.equal(gradient, torch.zeros_like(query))
    (gradient,) = torch.autograd.grad(contrast_bce(pairs), query)
    assert contrast_bce(pairs).item() == pytest.approx(-math.log(sigmoid(pairs.positive.item())))
    assert bool(gradient.isfinite().all())
    assert (pairs.metrics["contrast_top1"].item(), pairs.metrics["neg_cos"].item()) == (1.0, 0.0)


def test_without_negatives_the_positive_pairs_remain() -> None:
    query, key, *_ = embeddings()
    pairs = pair_logits(query, key, 0.3, negatives=key[:0])
    assert contrast_ce(pairs).item() == 0
    assert contrast_bce(pairs).item() == pytest.approx(pairs.positive.neg().exp().log1p().mean().item())


@pytest.mark.parametrize(("source", "negatives"), [("given", 7), ("all", 6), ("other_view", 3)])
def test_equal_embeddings_cost_the_logarithm_of_the_candidates_and_none_is_found(source: str, negatives: int) -> None:
    pairs = pairs_of(source, tuple(torch.ones_like(part) for part in embeddings()))
    assert negatives == pairs.K
    assert contrast_ce(pairs).item() == pytest.approx(math.log(1 + negatives))
    low, high = -math.log(sigmoid(1 / 0.3)), -math.log(1 - sigmoid(1 / 0.3))
    assert contrast_bce(pairs).item() == pytest.approx(low + negatives * high)
    assert pairs.metrics["contrast_top1"].item() == 0
    assert pairs.metrics["contrast_top5"].item() == float(negatives < 5)
    assert pairs.metrics["neg_cos"].item() == pytest.approx(1)


@SOURCES
def test_extreme_logits_stay_finite(source: str) -> None:
    z = tuple((part * 1e3).requires_grad_() for part in embeddings())
    pairs = pairs_of(source, z, 1e-3, unit_sphere=False)
    for loss in (contrast_ce(pairs), contrast_bce(pairs)):
        (gradient,) = torch.autograd.grad(loss, z[0], retain_graph=True)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


def test_wrong_shapes_and_numbers_are_refused() -> None:
    query, key, own, others = embeddings()
    with pytest.raises(ValueError, match="equal shape"):
        pair_logits(query, key, 0.3, own=own[:3])
    with pytest.raises(ValueError, match=r"with a row and a dimension are needed, not \(0, 3\)"):
        pair_logits(query[:0], key[:0], 0.3)
    with pytest.raises(ValueError, match=r"negatives \(K, 3\).*\(7, 2\)"):
        pair_logits(query, key, 0.3, negatives=others[:, :2])


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("with_own", [True, False])
def test_a_process_leaves_out_the_keys_of_its_own_images(
    monkeypatch: pytest.MonkeyPatch, rank: int, with_own: bool
) -> None:
    """One of three processes, the others' keys given: the indices of its positives among everyone's."""
    query, key, own, _ = embeddings(6)
    module = sys.modules["sslcli.losses.contrast"]
    blocks = [slice(2 * r, 2 * r + 2) for r in range(3)]
    parts = [torch.cat((key[s], own[s]) if with_own else (key[s],)) for s in blocks]
    monkeypatch.setattr(module, "all_gather", lambda x, gradient: F.normalize(torch.cat(parts), dim=1))
    monkeypatch.setattr(module, "rank", lambda: rank)
    here = blocks[rank]
    pairs = pair_logits(query[here], key[here], 0.3, own=own[here] if with_own else None)
    monkeypatch.undo()
    whole = pair_logits(query, key, 0.3, own=own if with_own else None)
    assert pairs.K == whole.K
    torch.testing.assert_close(pairs.positive, whole.positive[here])
    torch.testing.assert_close(pairs.negative.exp().sum(dim=1), whole.negative.exp().sum(dim=1)[here])
