"""DINO's loss against a literal transcription of the paper's algorithm 1, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import stretches
from sslcli.losses.dino import dino, dino_terms, teacher_entropy


def views(
    count: int, images: int = 3, prototypes: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randn(count, images, prototypes, generator=generator, dtype=torch.float64).to(dtype)]


CENTER = torch.tensor([0.3, -0.2, 0.0, 0.5, -0.4], dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def literal_dino(student: list[Tensor], teacher: list[Tensor], center: Tensor, tau_s: float, tau_t: float) -> float:
    """H(P_t(x), P_s(x′)) = −Σ P_t log P_s, the mean over the images and all pairs of two different views."""
    c, values = center.tolist(), []
    for g, t in enumerate(teacher):
        for v, s in enumerate(student):
            if v == g:
                continue
            for t_row, s_row in zip(t.tolist(), s.tolist(), strict=True):
                p_t = softmax([(value - shift) / tau_t for value, shift in zip(t_row, c, strict=True)])
                p_s = softmax([value / tau_s for value in s_row])
                values.append(-sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True)))
    return sum(values) / len(values)


@pytest.mark.parametrize(("v", "g"), [(2, 1), (2, 2), (5, 2), (4, 3)])
@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.1, 0.04), (1.0, 0.5)])
def test_dino_is_the_papers_algorithm(v: int, g: int, tau_s: float, tau_t: float) -> None:
    student, teacher = views(v), views(g, seed=1)
    expected = literal_dino(student, teacher, CENTER, tau_s, tau_t)
    assert dino(student, teacher, CENTER, tau_s, tau_t).item() == pytest.approx(expected, rel=1e-12)


def test_dino_gradient_is_right() -> None:
    student = [s.requires_grad_() for s in views(3, images=2)]
    teacher = views(2, images=2, seed=1)
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *s: dino(s[:3], teacher, CENTER, s[3], 0.2), (*student, tau))


def test_dino_teacher_and_center_get_no_gradient() -> None:
    student, teacher = views(2), [t.requires_grad_() for t in views(2, seed=1)]
    center = CENTER.clone().requires_grad_()
    assert not dino(student, teacher, center, 0.1, 0.04).requires_grad
    assert not teacher_entropy(teacher, center, 0.04).requires_grad


def test_dino_does_not_take_the_logarithm_of_a_log_softmax() -> None:
    """log(log softmax) is NaN everywhere; log softmax twice is log softmax, which hides the bug from the value."""
    student = [s.requires_grad_() for s in views(2)]
    loss = dino(student, views(2, seed=1), CENTER, 0.1, 0.04)
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(literal_dino(student, views(2, seed=1), CENTER, 0.1, 0.04), rel=1e-12)


def test_dino_never_compares_a_view_with_itself() -> None:
    """With one teacher view the student's like view takes no part."""
    first, second = (s.requires_grad_() for s in views(2))
    dino([first, second], views(1, seed=1), CENTER, 0.1, 0.04).backward()
    assert first.grad is None
    assert second.grad.abs().sum() > 0


def test_dino_center_is_subtracted_from_the_teacher_alone() -> None:
    student, teacher = views(3), views(2, seed=1)
    shifted = [t + CENTER for t in teacher]
    expected = dino(student, teacher, torch.zeros(5, dtype=torch.float64), 0.1, 0.04)
    torch.testing.assert_close(dino(student, shifted, CENTER, 0.1, 0.04), expected)
    assert abs(dino(student, teacher, CENTER, 0.1, 0.04) - expected) > 1e-2


def test_dino_takes_the_center_as_a_row_too() -> None:
    student, teacher = views(3), views(2, seed=1)
    assert torch.equal(dino(student, teacher, CENTER, 0.1, 0.04), dino(student, teacher, CENTER[None], 0.1, 0.04))


def test_dino_order_of_images_prototypes_and_local_views_does_not_matter() -> None:
    student, teacher = views(4), views(2, seed=1)
    loss = dino(student, teacher, CENTER, 0.1, 0.04)
    rows, columns = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(dino([s[rows] for s in student], [t[rows] for t in teacher], CENTER, 0.1, 0.04), loss)
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
    same = [torch.ones(1, 5, dtype=torch.float64)] * 2
    zero = torch.zeros(5, dtype=torch.float64)
    assert dino(same, same, zero, 0.1, 0.04).item() == pytest.approx(math.log(5))
    assert teacher_entropy(same, zero, 0.04).item() == pytest.approx(math.log(5))


def test_dino_of_very_large_logits_is_finite() -> None:
    student = [(1e4 * s.float()).requires_grad_() for s in views(2)]
    teacher = [1e4 * t.float() for t in views(2, seed=1)]
    loss = dino(student, teacher, CENTER, 0.1, 0.04)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(s.grad).all() for s in student)
    assert teacher_entropy(teacher, CENTER, 0.04).item() == 0


def test_dino_minus_the_entropy_is_the_mean_divergence() -> None:
    student, teacher = views(3), views(2, seed=1)
    divergences = []
    for g, t in enumerate(teacher):
        for v, s in enumerate(student):
            if v != g:
                for t_row, s_row in zip(t - CENTER, s, strict=True):
                    p, q = softmax((t_row / 0.2).tolist()), softmax((s_row / 0.5).tolist())
                    divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    found = dino(student, teacher, CENTER, 0.5, 0.2) - teacher_entropy(teacher, CENTER, 0.2)
    assert found.item() == pytest.approx(sum(divergences) / len(divergences), rel=1e-10)


def test_dino_temperature_tensors_and_numbers_give_the_same() -> None:
    student, teacher = views(3), views(2, seed=1)
    tensors = dino(student, teacher, CENTER, torch.tensor(0.5), torch.tensor(0.25))
    assert torch.equal(tensors, dino(student, teacher, CENTER, 0.5, 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dino_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = views(3, dtype=dtype), views(2, seed=1, dtype=dtype)
    loss = dino(student, teacher, CENTER.float(), 0.1, 0.04)
    assert loss.dtype == torch.float32
    as_float = dino([s.float() for s in student], [t.float() for t in teacher], CENTER.float(), 0.1, 0.04)
    assert torch.equal(loss, as_float)
    assert teacher_entropy(teacher, CENTER.float(), 0.04).dtype == torch.float32


def test_dino_gradients_too_small_for_half_precision_reach_it_with_the_scalers_factor() -> None:
    half = [torch.randn(4, 3000, generator=torch.Generator().manual_seed(n)).half() for n in range(4)]
    single = [tensor.float() for tensor in half]
    for student in half[:2] + single[:2]:
        student.requires_grad_()
    for logits, center in ((half, torch.zeros(3000)), (single, torch.zeros(3000))):
        (4096 * dino(logits[:2], logits[2:], center, 1.0, 1.0)).backward()
    for student, exact in zip(half[:2], single[:2], strict=True):
        assert student.grad is not None
        assert exact.grad is not None
        torch.testing.assert_close(student.grad, exact.grad.half(), rtol=0, atol=0)


def test_dino_autocast_does_not_reach_the_loss() -> None:
    student, teacher = views(3, dtype=torch.float32), views(2, seed=1, dtype=torch.float32)
    center = CENTER.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dino(student, teacher, center, 0.1, 0.04), teacher_entropy(teacher, center, 0.04)
    outside = dino(student, teacher, center, 0.1, 0.04), teacher_entropy(teacher, center, 0.04)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_dino_refuses_views_shapes_and_temperatures_that_make_no_sense() -> None:
    student, teacher = views(3), views(2, seed=1)
    with pytest.raises(ValueError, match="not 1 of 1"):
        dino(student[:1], teacher[:1], CENTER, 0.1, 0.04)
    with pytest.raises(ValueError, match="not 2 of 1"):
        dino(student[:1], teacher, CENTER, 0.1, 0.04)
    with pytest.raises(ValueError, match="not 0 of 3"):
        dino(student, [], CENTER, 0.1, 0.04)
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
    with pytest.raises(ValueError, match="the teacher's temperature"):
        teacher_entropy(teacher, CENTER, 0.0)


@pytest.mark.parametrize("rows", [1, 2])
def test_dino_some_images_at_a_time_is_all_at_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    found = []
    for elements in (5 * rows, 2**17):
        monkeypatch.setitem(stretches._ELEMENTS, "cpu", elements)
        student = [s.requires_grad_() for s in views(3)]
        loss, entropy = dino_terms(student, views(2, seed=1), CENTER, 0.1, 0.04)
        (2 * loss).backward()
        found.append((loss, entropy, *(s.grad for s in student)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_dino_entropy_that_comes_with_the_loss_is_the_teachers_and_has_no_gradient() -> None:
    student, teacher = [s.requires_grad_() for s in views(3)], views(2, seed=1)
    entropy = dino_terms(student, teacher, CENTER, 0.1, 0.04)[1]
    torch.testing.assert_close(entropy, teacher_entropy(teacher, CENTER, 0.04), rtol=1e-12, atol=0)
    assert not entropy.requires_grad
    assert dino_terms([1e4 * s for s in student], [1e4 * t for t in teacher], CENTER, 0.1, 0.04)[1].item() == 0


def test_dino_keeps_one_matrix_of_gradients_for_each_student_view_and_nothing_else_of_that_size() -> None:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        dino([s.requires_grad_() for s in views(4)], views(2, seed=1), CENTER, 0.1, 0.04)
    assert sorted(sizes) == [1, 15, 15, 15, 15]
