"""DINO's loss: the student's distribution over prototypes follows the teacher's sharpened, centred one of another view.

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, https://arxiv.org/abs/2104.14294,
equations 1 and 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dino(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
) -> Tensor:
    """Returns −Σₖ softmax((t_g − c)/τₜ)ₖ · log softmax(s_v/τₛ)ₖ, the mean over the images and all pairs with g ≠ v.

    Teacher view g and student view g are the same view of the images: the teacher's views are the student's first ones,
    and no view is compared with itself. Nothing is L2-normalised here. The teacher's side gets no gradient whatever is
    passed. The mean is over this process's rows; DDP's average makes it the mean over all, as long as the centre is
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
    _check(student, teacher, center)
    _check_temperature("student", student_temperature)
    with torch.autocast(student[0].device.type, enabled=False):
        targets = [log_target.exp() for log_target in _log_targets(teacher, center, teacher_temperature)]
        dtype = torch.promote_types(student[0].dtype, targets[0].dtype)
        total = torch.zeros((), dtype=dtype, device=student[0].device)
        for v, logits in enumerate(student):
            others = [target for g, target in enumerate(targets) if g != v]
            if others:
                log_p = F.log_softmax(logits.to(dtype) / student_temperature, dim=1)
                # One product for all teacher views: the cross-entropy is linear in the target.
                total = total - (torch.stack(others).sum(dim=0) * log_p).sum()
        pairs = len(teacher) * (len(student) - 1)
        return total / (pairs * len(student[0]))


@torch.no_grad()
def teacher_entropy(teacher: Sequence[Tensor], center: Tensor, teacher_temperature: float | Tensor) -> Tensor:
    """Returns the entropy of softmax((t − c)/τₜ) in nats, the mean over views and images, without gradient.

    0 if the teacher names one prototype for certain, log K if it is indifferent: both at once for all images are the
    two ways to collapse. The loss minus it is the mean Kullback-Leibler divergence of student and teacher.

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
        raise ValueError(f"the centre of {prototypes} prototypes must be ({prototypes},), not {tuple(center.shape)}")
