"""Distillation against a queue: SEED's equation written out, and what it is when student and teacher are equal."""

from __future__ import annotations

import math

import pytest
import torch
from literal import rows

from sslcli.losses import queue_distillation_and_metrics, unit_rows

S, T, KEYS = rows(5, 4, seed=0), rows(5, 4, seed=1), unit_rows(rows(7, 4, seed=2))


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (a @ a).sqrt() / (b @ b).sqrt()


def literal(student: torch.Tensor, tau: float, teacher_tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """SEED's cross-entropy over the keys and the image's own teacher embedding, and the teacher's entropy."""
    crosses, entropies = [], []
    for s, t in zip(student, T, strict=True):
        classes = [*KEYS, t]
        p = [math.exp(cosine(t, d) / teacher_tau) for d in classes]
        q = [(cosine(s, d) / tau).exp() for d in classes]
        p = [each / sum(p) for each in p]
        crosses.append(-sum(a * (b / sum(q)).log() for a, b in zip(p, q, strict=True)))
        entropies.append(-sum(a * math.log(a) for a in p))
    return sum(crosses) / len(crosses), sum(entropies) / len(entropies)


@pytest.mark.parametrize(("tau", "teacher_tau"), [(0.07, 0.07), (0.2, 0.01)])
def test_it_is_the_papers_cross_entropy_less_the_teachers_entropy(tau: float, teacher_tau: float) -> None:
    mine, theirs = S.clone().requires_grad_(), S.clone().requires_grad_()
    loss, metrics = queue_distillation_and_metrics(mine, T, KEYS, tau, teacher_tau)
    cross, entropy = literal(theirs, tau, teacher_tau)
    torch.testing.assert_close(loss, cross - entropy)
    torch.testing.assert_close(metrics["teacher_entropy"], torch.as_tensor(entropy, dtype=torch.float64))
    loss.backward()
    cross.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_student_equal_to_the_teacher_has_no_loss_and_any_other_has() -> None:
    assert queue_distillation_and_metrics(3 * T, T, KEYS, 0.07, 0.07)[0].abs() < 1e-12
    assert queue_distillation_and_metrics(S, T, KEYS, 0.07, 0.07)[0] > 0.1
