"""Contrast taken apart: literal transcriptions of each loss on each source of negatives, and edges."""

from __future__ import annotations

import math

import pytest
import torch
from contrast_inputs import SOURCES, SPHERE, contrast, embeddings
from torch import Tensor

from sslcli.losses import (
    batch_contrast,
    byol_regression,
    contrast_bce,
    contrast_ce,
    contrast_monitors,
    eqco,
    info_nce,
    inner_product,
    negative_cosine,
    nt_xent,
)

Rows = list[list[float]]


def product(a: list[float], b: list[float], unit_sphere: bool) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)) if unit_sphere else dot


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pairs_of(source: str, z: tuple[Tensor, ...]) -> list[tuple[list[float], list[float], Rows]]:
    """Each query, its key, and its negatives."""
    query, key, own, queue = (part.tolist() for part in z)
    found = []
    for i, q in enumerate(query):
        others: Rows = queue if source == "queue" else [row for j, row in enumerate(key) if j != i]
        if source == "all":
            others = others + [row for j, row in enumerate(own) if j != i]
        found.append((q, key[i], others))
    return found


@SOURCES
@SPHERE
@pytest.mark.parametrize("alpha", [None, 50.0])
def test_cross_entropy_is_its_formula(source: str, unit_sphere: bool, alpha: float | None) -> None:
    z = embeddings()
    total = 0.0
    for q, positive, others in pairs_of(source, z):
        top = math.exp(product(q, positive, unit_sphere) / 0.3)
        rest = sum(math.exp(product(q, k, unit_sphere) / 0.3) for k in others)
        total += -math.log(top / (top + (1 if alpha is None else alpha / len(others)) * rest))
    found = contrast_ce(contrast(source, z, unit_sphere=unit_sphere), alpha)
    assert found.item() == pytest.approx(total / 4, rel=1e-12)


@SOURCES
@SPHERE
def test_binary_cross_entropy_is_its_formula(source: str, unit_sphere: bool) -> None:
    z = embeddings()
    terms = []
    for q, positive, others in pairs_of(source, z):
        terms.append(-math.log(sigmoid(product(q, positive, unit_sphere) / 0.3)))
        # 1 − σ(l) = σ(−l), which keeps its digits.
        terms += [-math.log(sigmoid(-product(q, k, unit_sphere) / 0.3)) for k in others]
    found = contrast_bce(contrast(source, z, unit_sphere=unit_sphere))
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


@SPHERE
def test_inner_product_is_its_formula(unit_sphere: bool) -> None:
    query, key, *_ = embeddings()
    each = [1 - product(q, k, unit_sphere) for q, k in zip(query.tolist(), key.tolist(), strict=True)]
    assert inner_product(query, key, unit_sphere=unit_sphere).item() == pytest.approx(sum(each) / 4, rel=1e-12)


@SOURCES
@SPHERE
def test_monitors_are_the_shares_and_means_over_all_pairs(source: str, unit_sphere: bool) -> None:
    z = embeddings(9, 11)
    firsts, fifths, same, different = 0, 0, [], []
    for q, positive, others in pairs_of(source, z):
        top = product(q, positive, unit_sphere)
        better = sum(product(q, k, unit_sphere) >= top for k in others)
        firsts, fifths = firsts + (better < 1), fifths + (better < 5)
        same.append(product(q, positive, True))
        different += [product(q, k, True) for k in others]
    made = contrast(source, z, unit_sphere=unit_sphere)
    found = {name: value.item() for name, value in contrast_monitors(made).items()}
    assert found == pytest.approx(
        {
            "contrast_top1": firsts / 9,
            "contrast_top5": fifths / 9,
            "pos_cos": sum(same) / 9,
            "neg_cos": sum(different) / len(different),
        },
        rel=1e-12,
    )
    assert 0 < found["contrast_top5"] < 1
    assert len(different) == 9 * made.K


@SOURCES
@SPHERE
def test_gradients_are_right(source: str, unit_sphere: bool) -> None:
    z = [part.clone().requires_grad_() for part in embeddings(3, 4)]

    def losses(*parts: Tensor) -> tuple[Tensor, ...]:
        made = contrast(source, parts, unit_sphere=unit_sphere)
        return contrast_ce(made), contrast_ce(made, 50.0), contrast_bce(made)

    assert torch.autograd.gradcheck(losses, z)
    assert torch.autograd.gradcheck(lambda q, k: inner_product(q, k, unit_sphere=unit_sphere), z[:2])


def test_monitors_have_no_gradient() -> None:
    z = [part.requires_grad_() for part in embeddings()]
    assert not any(value.requires_grad for value in contrast_monitors(contrast("all", tuple(z))).values())


def test_on_a_queue_it_is_info_nce_and_eqco() -> None:
    query, key, _, queue = z = embeddings()
    made = contrast("queue", z)
    assert torch.equal(contrast_ce(made), info_nce(query, key, queue, 0.3))
    assert torch.equal(contrast_ce(made, 50.0), eqco(query, key, queue, 0.3, 50.0))


def test_on_the_batch_with_keys_that_are_the_queries_it_is_nt_xent_to_the_gradient() -> None:
    z1, z2 = (part.requires_grad_() for part in embeddings()[:2])
    both = (contrast_ce(batch_contrast(z1, z2, z1, 0.3)) + contrast_ce(batch_contrast(z2, z1, z2, 0.3))) / 2
    reference = nt_xent(z1, z2, 0.3)
    torch.testing.assert_close(both, reference, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(both, (z1, z2)), torch.autograd.grad(reference, (z1, z2)), strict=True):
        torch.testing.assert_close(a, b)


def test_inner_product_is_half_of_byols_loss_and_one_more_than_simsiams() -> None:
    query, key, *_ = embeddings()
    torch.testing.assert_close(2 * inner_product(query, key), byol_regression(query, key), rtol=1e-12, atol=0)
    torch.testing.assert_close(inner_product(query, key) - 1, negative_cosine(query, key), rtol=1e-12, atol=0)


@SOURCES
def test_the_order_of_images_and_on_the_sphere_lengths_do_not_matter(source: str) -> None:
    query, key, own, queue = z = embeddings()
    order = torch.tensor([2, 0, 3, 1])
    moved = contrast(source, (query[order] * 9, key[order] / 3, own[order] * 2, queue.flip(0) * 5))
    for loss in (contrast_ce, contrast_bce):
        torch.testing.assert_close(loss(moved), loss(contrast(source, z)))
    torch.testing.assert_close(inner_product(query * 9, key / 3), inner_product(query, key))


@SOURCES
def test_off_the_sphere_lengths_matter(source: str) -> None:
    query, key, own, queue = z = embeddings()
    longer = (2 * query, key, own, queue)
    for loss in (contrast_ce, contrast_bce):
        first, second = (loss(contrast(source, each, unit_sphere=False)) for each in (z, longer))
        assert abs(first - second) > 1e-3
        torch.testing.assert_close(second, loss(contrast(source, z, 0.15, unit_sphere=False)))
