"""DINO's loss against a literal transcription of the paper's algorithm 1, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from literal import mean, rows, softmax
from torch import Tensor

from sslcli.losses import dino, dino_and_metrics

CENTER = torch.tensor([0.3, -0.2, 0.0, 0.5, -0.4], dtype=torch.float64)


def views(count: int, seed: int = 0) -> list[Tensor]:
    return [*rows(count, 3, 5, seed=seed)]


def distributions(
    student: list[Tensor], teacher: list[Tensor], tau_s: float, tau_t: float
) -> list[tuple[list[float], list[float]]]:
    """P_t and P_s of every image and every pair of two different views."""
    found, c = [], CENTER.tolist()
    for g, t in enumerate(teacher):
        for v, s in enumerate(student):
            if v != g:
                for t_row, s_row in zip(t.tolist(), s.tolist(), strict=True):
                    p_t = softmax([(value - shift) / tau_t for value, shift in zip(t_row, c, strict=True)])
                    found.append((p_t, softmax([value / tau_s for value in s_row])))
    return found


def literal_dino(student: list[Tensor], teacher: list[Tensor], tau_s: float, tau_t: float) -> float:
    """H(P_t(x), P_s(x′)) = −Σ P_t log P_s, the mean over the images and all pairs of two different views."""
    pairs = distributions(student, teacher, tau_s, tau_t)
    return mean([-sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True)) for p_t, p_s in pairs])


@pytest.mark.parametrize(("v", "g"), [(2, 1), (2, 2), (5, 2), (4, 3)])
@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.1, 0.04), (1.0, 0.5)])
def test_dino_is_the_papers_algorithm(v: int, g: int, tau_s: float, tau_t: float) -> None:
    student, teacher = views(v), views(g, seed=1)
    expected = literal_dino(student, teacher, tau_s, tau_t)
    assert dino(student, teacher, CENTER, tau_s, tau_t).item() == pytest.approx(expected, rel=1e-12)


def test_dino_entropy_and_divergence_are_their_formulas() -> None:
    student, teacher = views(3), views(2, seed=1)
    pairs = distributions(student, teacher, 0.5, 0.2)
    metrics = dino_and_metrics(student, teacher, CENTER, 0.5, 0.2)[1]
    kl = mean([sum(a * math.log(a / b) for a, b in zip(p_t, p_s, strict=True)) for p_t, p_s in pairs])
    assert metrics["kl"].item() == pytest.approx(kl, rel=1e-10)
    entropy = mean([-sum(a * math.log(a) for a in p_t) for p_t, _ in pairs])  # each view in two pairs
    assert metrics["teacher_entropy"].item() == pytest.approx(entropy, rel=1e-10)


def test_dino_does_not_take_the_logarithm_of_a_log_softmax() -> None:
    """log(log softmax) is NaN everywhere; log softmax twice is log softmax, which hides the bug from the value."""
    student = [s.requires_grad_() for s in views(2)]
    loss = dino(student, views(2, seed=1), CENTER, 0.1, 0.04)
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(literal_dino(student, views(2, seed=1), 0.1, 0.04), rel=1e-12)


def test_dino_never_compares_a_view_with_itself() -> None:
    """With one teacher view the student's same view is not used."""
    first, second = (s.requires_grad_() for s in views(2))
    dino([first, second], views(1, seed=1), CENTER, 0.1, 0.04).backward()
    assert first.grad is None
    assert second.grad.abs().sum() > 0


def test_dino_center_is_subtracted_only_from_the_teacher() -> None:
    student, teacher = views(3), views(2, seed=1)
    shifted = [t + CENTER for t in teacher]
    expected = dino(student, teacher, torch.zeros(5, dtype=torch.float64), 0.1, 0.04)
    torch.testing.assert_close(dino(student, shifted, CENTER, 0.1, 0.04), expected)
    assert abs(dino(student, teacher, CENTER, 0.1, 0.04) - expected) > 1e-2
    assert torch.equal(dino(student, teacher, CENTER, 0.1, 0.04), dino(student, teacher, CENTER[None], 0.1, 0.04))


def test_dino_order_of_prototypes_and_views_does_not_matter() -> None:
    student, teacher = views(4), views(2, seed=1)
    loss, columns = dino(student, teacher, CENTER, 0.1, 0.04), torch.tensor([3, 1, 4, 0, 2])
    mixed = dino([s[:, columns] for s in student], [t[:, columns] for t in teacher], CENTER[columns], 0.1, 0.04)
    torch.testing.assert_close(mixed, loss)
    torch.testing.assert_close(dino([*student[:2], student[3], student[2]], teacher, CENTER, 0.1, 0.04), loss)
    torch.testing.assert_close(dino([student[1], student[0], *student[2:]], teacher[::-1], CENTER, 0.1, 0.04), loss)


def test_dino_is_not_normalized_and_ignores_what_is_added_to_all_prototypes() -> None:
    student, teacher = views(3), views(2, seed=1)
    loss = dino(student, teacher, CENTER, 0.1, 0.04)
    torch.testing.assert_close(dino([s + 7 for s in student], [t - 3 for t in teacher], CENTER, 0.1, 0.04), loss)
    assert abs(dino([2 * s for s in student], teacher, CENTER, 0.1, 0.04) - loss) > 1e-2
    torch.testing.assert_close(dino([2 * s for s in student], teacher, CENTER, 0.2, 0.04), loss)


def test_dino_of_equal_logits_costs_the_logarithm_of_the_prototypes() -> None:
    same, zero = [torch.ones(1, 5, dtype=torch.float64)] * 2, torch.zeros(5, dtype=torch.float64)
    loss, metrics = dino_and_metrics(same, same, zero, 0.1, 0.04)
    assert loss.item() == metrics["teacher_entropy"].item() == pytest.approx(math.log(5))


def test_dino_entropy_of_a_certain_teacher_is_exactly_zero() -> None:
    student, teacher = [1e4 * s for s in views(2)], [1e4 * t for t in views(2, seed=1)]
    assert dino_and_metrics(student, teacher, CENTER, 0.1, 0.04)[1]["teacher_entropy"].item() == 0


def test_dino_gradients_too_small_for_half_precision_reach_it_with_the_scalers_factor() -> None:
    half = [rows(4, 3000, seed=n).half() for n in range(4)]
    single = [tensor.float() for tensor in half]
    for student in half[:2] + single[:2]:
        student.requires_grad_()
    for logits in (half, single):
        (4096 * dino(logits[:2], logits[2:], torch.zeros(3000), 1.0, 1.0)).backward()
    for student, exact in zip(half[:2], single[:2], strict=True):
        assert student.grad is not None
        assert exact.grad is not None
        torch.testing.assert_close(student.grad, exact.grad.half(), rtol=0, atol=0)


def test_dino_refuses_wrong_views_shapes_and_temperatures() -> None:
    student, teacher = views(3), views(2, seed=1)
    for students, teachers, counts in ((1, 1, "1 of 1"), (1, 2, "2 of 1"), (3, 0, "0 of 3")):
        with pytest.raises(ValueError, match=f"not for {counts}"):
            dino(student[:students], teacher[:teachers], CENTER, 0.1, 0.04)
    with pytest.raises(ValueError, match=r"one shape are needed, not \(2, 5\), \(3, 5\)"):
        dino([*student[:2], student[2][:2]], teacher, CENTER, 0.1, 0.04)
    with pytest.raises(ValueError, match=r"are needed, not \(0, 5\)"):
        dino([s[:0] for s in student], [t[:0] for t in teacher], CENTER, 0.1, 0.04)
    with pytest.raises(ValueError, match=r"must be \(5,\), not \(4,\)"):
        dino(student, teacher, CENTER[:4], 0.1, 0.04)
    with pytest.raises(ValueError, match="the student's temperature must be positive, not 0"):
        dino(student, teacher, CENTER, 0, 0.04)
    with pytest.raises(ValueError, match="the teacher's temperature must be positive, not -1"):
        dino(student, teacher, CENTER, 0.1, -1.0)
