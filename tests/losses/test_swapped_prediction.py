"""SwAV's loss against a literal transcription of the paper's equations, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from literal import mean, rows, softmax
from torch import Tensor

from sslcli.losses import sinkhorn, swapped_prediction


def random_scores(views: int = 4, images: int = 3) -> list[Tensor]:
    return [*rows(views, images, 5).tanh()]


def random_assignments(views: int = 2, images: int = 3) -> list[Tensor]:
    return [*rows(views, images, 5, seed=1).softmax(2)]


def literal_swapped_prediction(scores: list[Tensor], assignments: list[Tensor], temperature: float) -> float:
    """Equations 2 and 6, for every image and every pair of an assigned view and another one."""
    terms = []
    for g, q in enumerate(assignments):
        for v, s in enumerate(scores):
            if v != g:
                for q_row, s_row in zip(q.tolist(), s.tolist(), strict=True):
                    p = softmax([value / temperature for value in s_row])
                    terms.append(-sum(a * math.log(b) for a, b in zip(q_row, p, strict=True)))
    return mean(terms)


@pytest.mark.parametrize(("views", "assigned"), [(2, 2), (2, 1), (8, 2), (4, 3), (3, 3)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("images", [3, 1])
def test_swapped_prediction_is_the_papers_equation(views: int, assigned: int, temperature: float, images: int) -> None:
    scores, q = random_scores(views, images), random_assignments(assigned, images)
    expected = literal_swapped_prediction(scores, q, temperature)
    assert swapped_prediction(scores, q, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_swapped_prediction_has_its_minus() -> None:
    """Better predictions cost less, and the cost is never negative."""
    q = random_assignments(2)
    good, bad = ([sign * 20 * q[0], sign * 20 * q[0]] for sign in (1, -1))
    assert 0 < swapped_prediction(good, [q[0], q[0]], 1.0) < swapped_prediction(bad, [q[0], q[0]], 1.0)


def test_views_that_agree_with_certain_assignments_cost_nothing() -> None:
    q = torch.eye(4, dtype=torch.float64)
    assert swapped_prediction([1000 * q, 1000 * q], [q, q], 0.1).item() == 0


def test_a_view_does_not_predict_its_own_assignment() -> None:
    first, second = (s.requires_grad_() for s in random_scores(2))
    swapped_prediction([first, second], random_assignments(1)).backward()
    assert first.grad is None
    assert second.grad.abs().sum() > 0


def test_every_pair_of_views_has_the_same_weight() -> None:
    """More local views do not make the loss larger: it is a mean over pairs, not a sum."""
    (s,), (q,) = random_scores(1), random_assignments(1)
    torch.testing.assert_close(swapped_prediction([s] * 8, [q, q]), swapped_prediction([s, s], [q, q]))


def test_the_order_of_prototypes_and_views_does_not_matter() -> None:
    scores, q = random_scores(), random_assignments()
    loss, prototypes = swapped_prediction(scores, q), torch.tensor([4, 1, 3, 0, 2])
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


def test_assignments_of_sinkhorn_are_taken_as_they_are() -> None:
    scores = random_scores(3)
    q = [sinkhorn(s) for s in scores[:2]]
    assert swapped_prediction(scores, q).item() == pytest.approx(literal_swapped_prediction(scores, q, 0.1), rel=1e-12)


def test_wrong_shapes_and_counts_are_refused() -> None:
    scores, q = random_scores(), random_assignments()
    with pytest.raises(ValueError, match="not for 1 of 1"):
        swapped_prediction(scores[:1], q[:1])
    with pytest.raises(ValueError, match="not for 0 of 4"):
        swapped_prediction(scores, [])
    with pytest.raises(ValueError, match="not for 3 of 2"):
        swapped_prediction(scores[:2], random_assignments(3))
    with pytest.raises(ValueError, match=r"one shape are needed, not \(2, 5\), \(3, 5\)"):
        swapped_prediction([*scores[:3], scores[3][:2]], q)
    with pytest.raises(ValueError, match=r"\(N, K\) tensors.*, not \(5,\)"):
        swapped_prediction([s[0] for s in scores], [each[0] for each in q])
