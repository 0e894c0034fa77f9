"""Contrast taken apart: edges, precision, refusals, its rows among other processes', and no wait on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from contrast_inputs import SOURCES, SPHERE, contrast, embeddings
from torch import Tensor

from sslcli.losses import batch_contrast, contrast_bce, contrast_ce, contrast_monitors, inner_product, queue_contrast


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


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
