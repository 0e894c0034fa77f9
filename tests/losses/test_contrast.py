"""Contrast taken apart: literal transcriptions of each loss on each source of negatives, and edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import (
    Contrast,
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
    queue_contrast,
)

Rows = list[list[float]]


def embeddings(n: int = 4, k: int = 7, dim: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """N queries, their keys, N keys of the queries' own view, and K others."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(3 * n + k, dim, generator=generator, dtype=torch.float64).to(dtype)
    return z[:n], z[n : 2 * n], z[2 * n : 3 * n], z[3 * n :]


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


def contrast(source: str, z: tuple[Tensor, ...], temperature: float = 0.3, *, unit_sphere: bool = True) -> Contrast:
    query, key, own, queue = z
    if source == "queue":
        return queue_contrast(query, key, queue, temperature, unit_sphere=unit_sphere)
    others = own if source == "all" else None
    return batch_contrast(query, key, others, temperature, unit_sphere=unit_sphere)


SOURCES = pytest.mark.parametrize("source", ["queue", "all", "other_view"])
SPHERE = pytest.mark.parametrize("unit_sphere", [True, False])


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


@pytest.mark.parametrize("with_own", [True, False])
def test_a_batch_of_one_image_has_no_negatives(with_own: bool) -> None:
    query, key, own, _ = (part.requires_grad_() for part in embeddings(1))
    made = batch_contrast(query, key, own if with_own else None, 0.3)
    assert made.K == 0
    for alpha in (None, 50.0):
        (gradient,) = torch.autograd.grad(contrast_ce(made, alpha), query, retain_graph=True)
        assert contrast_ce(made, alpha).item() == 0
        assert torch.equal(gradient, torch.zeros_like(query))
    (gradient,) = torch.autograd.grad(contrast_bce(made), query)
    assert contrast_bce(made).item() == pytest.approx(-math.log(sigmoid(made.positive.item())))
    assert bool(gradient.isfinite().all())
    found = contrast_monitors(made)
    assert (found["contrast_top1"].item(), found["neg_cos"].item()) == (1.0, 0.0)


def test_a_queue_without_keys_leaves_the_positive_pairs() -> None:
    query, key, *_ = embeddings()
    made = queue_contrast(query, key, key[:0], 0.3)
    assert contrast_ce(made).item() == 0
    assert contrast_bce(made).item() == pytest.approx(made.positive.neg().exp().log1p().mean().item())


@pytest.mark.parametrize(("source", "negatives"), [("queue", 7), ("all", 6), ("other_view", 3)])
def test_equal_embeddings_cost_the_logarithm_of_the_candidates_and_none_is_found(source: str, negatives: int) -> None:
    made = contrast(source, tuple(torch.ones_like(part) for part in embeddings()))
    assert negatives == made.K
    assert contrast_ce(made).item() == pytest.approx(math.log(1 + negatives))
    low, high = -math.log(sigmoid(1 / 0.3)), -math.log(1 - sigmoid(1 / 0.3))
    assert contrast_bce(made).item() == pytest.approx((low + negatives * high) / (1 + negatives))
    found = contrast_monitors(made)
    assert found["contrast_top1"].item() == 0
    assert found["contrast_top5"].item() == float(negatives < 5)
    assert found["neg_cos"].item() == pytest.approx(1)


@SOURCES
def test_rows_of_zeros_are_at_right_angles_to_everything(source: str) -> None:
    z = tuple(part.requires_grad_() for part in (torch.zeros_like(part) for part in embeddings()))
    made = contrast(source, z)
    assert contrast_ce(made).item() == pytest.approx(math.log(1 + made.K))
    assert contrast_bce(made).item() == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(contrast_ce(made) + contrast_bce(made), z[0])
    assert bool(gradient.isfinite().all())


@SOURCES
def test_extreme_logits_stay_finite(source: str) -> None:
    z = tuple((part * 1e3).requires_grad_() for part in embeddings())
    made = contrast(source, z, 1e-3, unit_sphere=False)
    for loss in (contrast_ce(made), contrast_bce(made)):
        (gradient,) = torch.autograd.grad(loss, z[0], retain_graph=True)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


@SOURCES
@SPHERE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_within_autocast(
    source: str, unit_sphere: bool, dtype: torch.dtype
) -> None:
    def values(z: tuple[Tensor, ...]) -> list[Tensor]:
        made = contrast(source, z, unit_sphere=unit_sphere)
        with_key = inner_product(z[0], z[1], unit_sphere=unit_sphere)
        return [contrast_ce(made), contrast_bce(made), with_key, *contrast_monitors(made).values()]

    z = embeddings(dtype=dtype)
    outside = values(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = values(z)
    exact = values(tuple(part.float() for part in z))
    for a, b, c in zip(outside, inside, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_temperature_tensor_and_a_number_give_the_same() -> None:
    z = embeddings()
    tensor = torch.tensor(0.25, dtype=torch.float64)
    assert torch.equal(contrast_ce(contrast("all", z, 0.25)), contrast_ce(batch_contrast(*z[:3], tensor)))


def test_keys_without_gradient_get_none() -> None:
    query, key, own, _ = embeddings()
    query.requires_grad_()
    contrast_ce(batch_contrast(query, key, own, 0.3)).backward()
    assert key.grad is None
    assert own.grad is None
    assert query.grad is not None


def test_wrong_shapes_and_numbers_are_refused() -> None:
    query, key, own, queue = embeddings()
    with pytest.raises(ValueError, match=r"equal shape.*\(4, 3\) and \(3, 3\)"):
        queue_contrast(query, key[:3], queue, 0.3)
    with pytest.raises(ValueError, match="equal shape"):
        batch_contrast(query, key, own[:3], 0.3)
    with pytest.raises(ValueError, match="equal shape"):
        inner_product(query, key[:, :2])
    with pytest.raises(ValueError, match="equal shape"):
        batch_contrast(query[:0], key[:0], None, 0.3)
    with pytest.raises(ValueError, match=r"negatives \(K, 3\).*\(7, 2\)"):
        queue_contrast(query, key, queue[:, :2], 0.3)
    for temperature in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be positive"):
            queue_contrast(query, key, queue, temperature)
        with pytest.raises(ValueError, match="temperature must be positive"):
            batch_contrast(query, key, None, temperature)
    with pytest.raises(ValueError, match="alpha must be positive, not 0"):
        contrast_ce(batch_contrast(query, key, None, 0.3), 0)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("with_own", [True, False])
def test_a_process_leaves_out_the_keys_of_its_own_images(
    monkeypatch: pytest.MonkeyPatch, rank: int, with_own: bool
) -> None:
    """One of three processes, the others' keys given: the places of its positives among everyone's."""
    query, key, own, _ = embeddings(6)
    module = __import__("sys").modules["sslcli.losses.contrast"]
    stretches = [slice(2 * r, 2 * r + 2) for r in range(3)]
    parts = [torch.cat((key[s], own[s]) if with_own else (key[s],)) for s in stretches]
    everyone = torch.nn.functional.normalize(torch.cat(parts), dim=1)
    monkeypatch.setattr(module, "all_gather", lambda x, gradient: everyone)
    monkeypatch.setattr(module, "rank", lambda: rank)
    here = stretches[rank]
    made = batch_contrast(query[here], key[here], own[here] if with_own else None, 0.3)
    monkeypatch.undo()
    whole = batch_contrast(query, key, own if with_own else None, 0.3)
    assert made.K == whole.K
    torch.testing.assert_close(made.positive, whole.positive[here])
    torch.testing.assert_close(made.negative.exp().sum(dim=1), whole.negative.exp().sum(dim=1)[here])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@SOURCES
def test_on_cuda_nothing_waits_for_the_device(source: str) -> None:
    z = tuple(part.cuda().requires_grad_() for part in embeddings(64, 64, 32, torch.float32))

    def losses() -> Tensor:
        made = contrast(source, z)
        contrast_monitors(made)
        return contrast_ce(made, 50.0) + contrast_bce(made) + inner_product(z[0], z[1])

    losses().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = losses()
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made = contrast(source, tuple(part.detach().cpu() for part in z))
    on_cpu = contrast_ce(made, 50.0) + contrast_bce(made) + inner_product(z[0].cpu(), z[1].cpu())
    torch.testing.assert_close(loss.cpu(), on_cpu, rtol=1e-4, atol=1e-5)
