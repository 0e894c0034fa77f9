"""Distillation against a queue: a student's embedding should be as similar to the teacher's of other images as the
teacher's own is.

Fang et al., *SEED: Self-supervised Distillation For Visual Representation*, https://arxiv.org/abs/2101.04731, section
3.2. lightly-train calls the queue pseudo class weights, and has one temperature for both networks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import check_negatives, check_pair, check_temperature, unit_rows


def queue_distillation_and_metrics(
    student: Tensor, teacher: Tensor, keys: Tensor, temperature: float, teacher_temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns Σⱼ pⱼ·(log pⱼ − log qⱼ), the mean over the N images, and its monitors.

    p = softmax(t·dⱼ/τₜ) and q = softmax(s·dⱼ/τ), over the K keys dⱼ and, as in SEED, the image's own t. It is SEED's
    cross-entropy less the entropy of p, which the student cannot change: 0 for a student that equals the teacher and
    has its temperature. Gradient flows to the student only.

    Args:
        student: (N, D), floating; L2-normalized here.
        teacher: (N, D), of the same images; L2-normalized here.
        keys: (K, D) with K ≥ 1, the teacher's embeddings of earlier images; their rows have length 1 already.
        temperature: τ > 0, of the student.
        teacher_temperature: τₜ > 0.

    Returns:
        the loss, 0-dim, float32 regardless of autocast, float64 for float64 students; and `teacher_entropy` of p in
        nats, 0-dim without gradient.

    Raises:
        ValueError: if the shapes don't fit together, or a temperature is not positive.
    """
    check_pair(student, teacher)
    check_negatives(student, keys)
    check_temperature(temperature)
    check_temperature(teacher_temperature, "teacher_temperature")
    with torch.autocast(student.device.type, enabled=False):
        s = unit_rows(student)
        t, d = unit_rows(teacher.detach()).to(s.dtype), keys.detach().to(s.dtype)
        own = torch.ones_like(t[:, :1])  # t·t
        log_p = F.log_softmax(torch.cat((own, t @ d.T), dim=1) / teacher_temperature, dim=1)
        log_q = F.log_softmax(torch.cat(((s * t).sum(dim=1, keepdim=True), s @ d.T), dim=1) / temperature, dim=1)
        p = log_p.exp()
        loss = (p * (log_p - log_q)).sum(dim=1).mean()
        return loss, {"teacher_entropy": -(p * log_p).sum(dim=1).mean()}
