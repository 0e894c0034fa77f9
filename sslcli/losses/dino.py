"""DINO's loss: the student's distribution over prototypes follows the teacher's sharpened, centered one.

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, https://arxiv.org/abs/2104.14294,
equations 1 and 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .stretches import stretch_length


def dino(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
) -> Tensor:
    """Returns −Σₖ softmax((t_g − c)/τₜ)ₖ · log softmax(s_v/τₛ)ₖ, the mean over the images and all pairs with g ≠ v.

    Teacher view g and student view g are the same view of the images: the teacher's views are the student's first ones,
    and no view is compared with itself. Nothing is L2-normalized here. The teacher's side gets no gradient whatever is
    passed. The mean is over this process's rows; DDP's average makes it the mean over all, as long as the center is
    the same everywhere.

    Args:
        student: V logits (N, K), floating, one for each view.
        teacher: G ≤ V logits (N, K), of the first G views; V·G > 1.
        center: (K,) or (1, K), the running mean of the teacher's logits.
        student_temperature: τₛ > 0; a number, or a 0-dim tensor on the logits' device.
        teacher_temperature: τₜ > 0, likewise; the method refuses one above τₛ, which flattens instead of sharpening.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 logits.

    Raises:
        ValueError: if there are no pairs, the shapes do not agree, or a temperature given as a number is not positive.
    """
    return dino_terms(student, teacher, center, student_temperature, teacher_temperature)[0]


def dino_terms(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns `dino` and, without gradient, `teacher_entropy`: both at the price of one.

    Arguments and errors as for `dino`.
    """
    _check(student, teacher, center)
    _check_temperature("student", student_temperature)
    _check_temperature("teacher", teacher_temperature)
    with torch.autocast(student[0].device.type, enabled=False):
        temperatures, fixed = (student_temperature, teacher_temperature), [t.detach() for t in teacher]
        loss, entropy = _CrossEntropy.apply(*temperatures, center.detach(), len(teacher), *fixed, *student)
        return loss, entropy


class _CrossEntropy(torch.autograd.Function):
    """The loss and the teacher's entropy, some images at a time, and the students' gradients together with them.

    Nothing else is kept: with 65,536 prototypes every (N, K) matrix weighs.
    """

    @staticmethod
    def forward(
        ctx: Any, tau_s: float | Tensor, tau_t: float | Tensor, center: Tensor, views: int, *logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        teacher, student = logits[:views], logits[views:]
        images, prototypes = student[0].shape
        dtype = torch.promote_types(torch.promote_types(student[0].dtype, teacher[0].dtype), torch.float32)
        loss, entropy, slope = (torch.zeros((), dtype=dtype, device=student[0].device) for _ in range(3))
        met = [[g for g in range(views) if g != v] for v in range(len(student))]  # the teacher's views that each meets
        terms = images * sum(map(len, met))
        wanted = ctx.needs_input_grad[-len(student) :]
        # Not in fp16 before the scaler's factor has come in: most of them are too small for it.
        gradients = [
            torch.empty_like(s, dtype=dtype) if g and w else None for s, g, w in zip(student, met, wanted, strict=True)
        ]
        length = stretch_length(prototypes, student[0].device)
        for part in (slice(start, start + length) for start in range(0, images, length)):
            targets = []
            for t in teacher:
                q, x, log_sum = _softmax((t[part].to(dtype) - center.to(dtype)) / tau_t)
                entropy += log_sum.sum() - (q * x).sum()
                targets.append(q)
            for s, others, gradient in zip(student, met, gradients, strict=True):
                if not others:
                    continue
                # One product for all teacher views: the cross-entropy is linear in the target.
                target = sum((targets[g] for g in others[1:]), targets[others[0]])
                p, x, log_sum = _softmax(s[part].to(dtype) / tau_s)
                loss += len(others) * log_sum.sum() - (target * x).sum()
                p.mul_(len(others)).sub_(target)
                slope -= (p * x).sum()
                if gradient is not None:
                    gradient[part] = p.div_(tau_s * terms)
        ctx.save_for_backward(slope / (tau_s * terms), *gradients)
        entropy /= images * views
        ctx.mark_non_differentiable(entropy)
        return loss / terms, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        slope, *gradients = ctx.saved_tensors
        of_students = (None if gradient is None else factor * gradient for gradient in gradients)
        others = len(ctx.needs_input_grad) - 1 - len(gradients)
        return factor * slope if ctx.needs_input_grad[0] else None, *[None] * others, *of_students


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax of rows; the logits less their largest, in their place; and the logarithm of the sum of these' powers."""
    logits -= logits.amax(dim=1, keepdim=True)
    softmax = logits.exp()
    total = softmax.sum(dim=1, keepdim=True)
    return softmax.div_(total), logits, total.log_()


@torch.no_grad()
def teacher_entropy(teacher: Sequence[Tensor], center: Tensor, teacher_temperature: float | Tensor) -> Tensor:
    """Returns the entropy of softmax((t − c)/τₜ) in nats, the mean over views and images, without gradient.

    0 if the teacher names one prototype for certain, log K if it is indifferent: both at once for all images are the
    two ways to collapse. The loss minus it is the mean Kullback-Leibler divergence of student and teacher. `dino_terms`
    has it together with the loss, at no further cost.

    Args:
        teacher: G logits (N, K).
        center: (K,) or (1, K).
        teacher_temperature: τₜ > 0.

    Returns:
        0-dim; float32 at least.

    Raises:
        ValueError: as `dino`.
    """
    _check(teacher, teacher[:1], center, pairs=False)
    with torch.autocast(teacher[0].device.type, enabled=False):
        log_q = torch.stack(_log_targets(teacher, center, teacher_temperature))
        return -(log_q.exp() * log_q).sum(dim=2).mean()


@torch.no_grad()
def _log_targets(teacher: Sequence[Tensor], center: Tensor, temperature: float | Tensor) -> list[Tensor]:
    _check_temperature("teacher", temperature)
    dtype = torch.promote_types(teacher[0].dtype, torch.float32)
    return [F.log_softmax((logits.to(dtype) - center.to(dtype)) / temperature, dim=1) for logits in teacher]


def _check_temperature(whose: str, temperature: float | Tensor) -> None:
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"the {whose}'s temperature must be positive, not {temperature}")


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor], center: Tensor, pairs: bool = True) -> None:
    if not 1 <= len(teacher) <= len(student) or (pairs and len(student) < 2):
        raise ValueError(
            f"the teacher's views are the first of the student's two or more, not {len(teacher)} of {len(student)}"
        )
    shapes = sorted({tuple(logits.shape) for logits in (*student, *teacher)})
    if len(shapes) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise ValueError(f"(N, K) logits of one shape are needed, not {', '.join(map(str, shapes))}")
    prototypes = shapes[0][1]
    if tuple(center.shape) not in ((prototypes,), (1, prototypes)):
        raise ValueError(f"the center of {prototypes} prototypes must be ({prototypes},), not {tuple(center.shape)}")
