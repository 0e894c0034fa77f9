"""DINO's loss: the student's distribution over prototypes follows the teacher's sharpened, centered one.

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, https://arxiv.org/abs/2104.14294,
equations 1 and 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import check_temperature
from .swapped_prediction import check_swapped, swapped_prediction


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
        0-dim; float32 regardless of autocast, float64 for float64 logits.

    Raises:
        ValueError: if there are no pairs, the shapes do not agree, or a temperature given as a number is not positive.
    """
    return dino_and_metrics(student, teacher, center, student_temperature, teacher_temperature)[0]


def dino_and_metrics(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `dino` and its monitors, 0-dim without gradient; arguments and errors as for `dino`.

    `teacher_entropy`: the entropy of softmax((t − c)/τₜ) in nats, the mean over views and images. 0 if the teacher
    always names one prototype, log K if it is indifferent; either of them for all images is one of the two ways to
    collapse. `kl`: the loss less that, which is the mean Kullback-Leibler divergence of student and teacher.
    """
    check_swapped(student, teacher)
    prototypes = student[0].shape[1]
    if tuple(center.shape) not in ((prototypes,), (1, prototypes)):
        raise ValueError(f"the center of {prototypes} prototypes must be ({prototypes},), not {tuple(center.shape)}")
    check_temperature(student_temperature, "student's temperature")
    check_temperature(teacher_temperature, "teacher's temperature")
    with torch.autocast(student[0].device.type, enabled=False), torch.no_grad():
        dtype = torch.promote_types(torch.promote_types(student[0].dtype, teacher[0].dtype), torch.float32)
        targets = [F.softmax((t.to(dtype) - center.to(dtype)) / teacher_temperature, dim=1) for t in teacher]  # N×K
        entropy = torch.stack([torch.special.entr(q).sum(dim=1).mean() for q in targets]).mean()
    loss = swapped_prediction(student, targets, student_temperature)
    return loss, {"teacher_entropy": entropy, "kl": loss.detach() - entropy}
