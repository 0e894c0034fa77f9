"""SwAV's loss against a literal transcription of the paper's equations, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import sinkhorn
from sslcli.losses.swapped_prediction import swapped_prediction


def random_scores(views: int = 4, images: int = 3, prototypes: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list((2 * torch.rand(views, images, prototypes, generator=generator, dtype=torch.float64) - 1).unbind())


def random_assignments(views: int = 2, images: int = 3, prototypes: int = 5, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(views, images, prototypes, generator=generator, dtype=torch.float64).softmax(2).unbind())


def literal_swapped_prediction(scores: list[Tensor], assignments: list[Tensor], temperature: float) -> float:
    """Equations 2 and 6, for every image and every pair of an assigned view and another one."""
    terms = []
    for g, q in enumerate(assignments):
        for v, s in enumerate(scores):
            if v == g:
                continue
            for n in range(len(s)):
                exponentials = [math.exp(value / temperature) for value in s[n].tolist()]
                p = [value / sum(exponentials) for value in exponentials]
                terms.append(-sum(q[n, k].item() * math.log(p[k]) for k in range(len(p))))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("views", "assigned"), [(2, 2), (2, 1), (8, 2), (4, 3), (3, 3)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_swapped_prediction_is_the_papers_equation(views: int, assigned: int, temperature: float) -> None:
    scores, q = random_scores(views), random_assignments(assigned)
    expected = literal_swapped_prediction(scores, q, temperature)
    assert swapped_prediction(scores, q, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_swapped_prediction_gradient_is_right() -> None:
    scores, q = [s.requires_grad_() for s in random_scores(3)], random_assignments()
    assert torch.autograd.gradcheck(lambda *s: swapped_prediction(s, q, 0.5), scores)


def test_swapped_prediction_has_its_minus() -> None:
    """Better predictions cost less, and the cost is never negative."""
    q = random_assignments(2)
    good, bad = ([sign * 20 * q[0], sign * 20 * q[0]] for sign in (1, -1))
    assert 0 < swapped_prediction(good, [q[0], q[0]], 1.0) < swapped_prediction(bad, [q[0], q[0]], 1.0)


def test_views_that_agree_with_certain_assignments_cost_nothing() -> None:
    q = torch.eye(4, dtype=torch.float64)
    assert swapped_prediction([1000 * q, 1000 * q], [q, q], 0.1).item() == 0


def test_a_view_does_not_predict_its_own_assignment() -> None:
    scores, q = random_scores(2), random_assignments(1)
    scores[0].requires_grad_()
    scores[1].requires_grad_()
    swapped_prediction(scores, q).backward()
    assert scores[0].grad is None
    assert scores[1].grad.abs().sum() > 0


def test_assignments_get_no_gradient() -> None:
    scores, q = [s.requires_grad_() for s in random_scores()], [q.requires_grad_() for q in random_assignments()]
    swapped_prediction(scores, q).backward()
    assert all(s.grad is not None for s in scores)
    assert all(each.grad is None for each in q)


def test_every_pair_of_views_weighs_the_same() -> None:
    """More local views do not make the loss larger: it is a mean over pairs, not a sum."""
    (s,), (q,) = random_scores(1), random_assignments(1)
    two, many = swapped_prediction([s, s], [q, q]), swapped_prediction([s] * 8, [q, q])
    torch.testing.assert_close(many, two)


def test_the_order_of_images_prototypes_and_local_views_does_not_matter() -> None:
    scores, q = random_scores(), random_assignments()
    loss = swapped_prediction(scores, q)
    images, prototypes = torch.tensor([2, 0, 1]), torch.tensor([4, 1, 3, 0, 2])
    torch.testing.assert_close(swapped_prediction([s[images] for s in scores], [each[images] for each in q]), loss)
    moved = [s[:, prototypes] for s in scores], [each[:, prototypes] for each in q]
    torch.testing.assert_close(swapped_prediction(*moved), loss)
    torch.testing.assert_close(swapped_prediction([scores[0], scores[1], scores[3], scores[2]], q), loss)
    torch.testing.assert_close(swapped_prediction([scores[1], scores[0], *scores[2:]], q[::-1]), loss)


def test_a_constant_added_to_an_image_s_scores_does_not_matter() -> None:
    scores, q = random_scores(), random_assignments()
    moved = [s + torch.tensor([[3.0], [-7.0], [0.5]], dtype=torch.float64) for s in scores]
    torch.testing.assert_close(swapped_prediction(moved, q), swapped_prediction(scores, q))


def test_equal_scores_cost_the_logarithm_of_the_prototypes() -> None:
    s, q = torch.ones(2, 5), torch.full((2, 5), 0.2)
    assert swapped_prediction([s, s], [q, q]).item() == pytest.approx(math.log(5))


def test_a_batch_of_one_image_is_no_special_case() -> None:
    scores = random_scores(3, images=1)
    q = [sinkhorn(s) for s in scores[:2]]
    expected = literal_swapped_prediction(scores, q, 0.1)
    assert swapped_prediction(scores, q).item() == pytest.approx(expected, rel=1e-12)


def test_a_temperature_tensor_and_a_number_give_the_same() -> None:
    scores, q = random_scores(), random_assignments()
    found = swapped_prediction(scores, q, torch.tensor(0.25, dtype=torch.float64))
    assert torch.equal(found, swapped_prediction(scores, q, 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_computed_in_float32(dtype: torch.dtype) -> None:
    scores, q = [s.to(dtype) for s in random_scores()], [each.float() for each in random_assignments()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = swapped_prediction(scores, q)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, swapped_prediction([s.float() for s in scores], q))


def test_large_scores_do_not_overflow() -> None:
    scores = [1e4 * s.float() for s in random_scores()]
    assert torch.isfinite(swapped_prediction(scores, [each.float() for each in random_assignments()]))


def test_wrong_shapes_counts_and_temperatures_are_refused() -> None:
    scores, q = random_scores(), random_assignments()
    with pytest.raises(ValueError, match="not 1 views and 1 assignments"):
        swapped_prediction(scores[:1], q[:1])
    with pytest.raises(ValueError, match="not 4 views and 0 assignments"):
        swapped_prediction(scores, [])
    with pytest.raises(ValueError, match="not 2 views and 3 assignments"):
        swapped_prediction(scores[:2], random_assignments(3))
    with pytest.raises(ValueError, match=r"alike, not .*\(2, 5\)"):
        swapped_prediction([*scores[:3], scores[3][:2]], q)
    with pytest.raises(ValueError, match=r"\(N, K\) and alike, not \(5,\)"):
        swapped_prediction([s[0] for s in scores], [each[0] for each in q])
    with pytest.raises(ValueError, match="positive, not 0"):
        swapped_prediction(scores, q, 0)
