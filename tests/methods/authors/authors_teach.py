"""SEED and DenseCL, step by step as their authors' code trains them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from authors_parts import Authors, Optimizer, Trunk, by_epoch
from torch import Tensor, nn


class SEED(Authors):
    """SEED: seed/builder.py, tools/utils.py (`soft_cross_entropy`), main.py; less the teacher's entropy, which is no
    part of its loss and has no gradient. The teacher is a network as it is given."""

    def __init__(self, teacher: nn.Module, dim: int, tau: float, teacher_tau: float, base: float) -> None:
        super().__init__()
        self.backbone, self.projector = Trunk(), nn.Sequential(nn.Linear(6, dim))
        self.optimizer = Optimizer(self.parameters(), 1e-4)
        self.given, self.tau, self.teacher_tau, self.base, self.pointer = [teacher], tau, teacher_tau, base, 0

    def load(self, weights: dict[str, Tensor]) -> None:
        super().load(weights)
        self.queue = weights["queue.keys"].T.clone()

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        student = F.normalize(self.projector(self.backbone(views[0])), dim=1)
        with torch.no_grad():
            teacher = F.normalize(self.given[0](views[0]).pooled, dim=1)
        logits = torch.cat(((student * teacher).sum(dim=1, keepdim=True), student @ self.queue), dim=1) / self.tau
        targets = torch.cat(((teacher * teacher).sum(dim=1, keepdim=True), teacher @ self.queue), dim=1)
        targets = F.softmax(targets / self.teacher_tau, dim=1)
        loss = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
        self.backward(loss)
        self.optimizer.step(by_epoch(self.base, t))
        self.queue[:, self.pointer : self.pointer + len(teacher)] = teacher.T
        self.pointer = (self.pointer + len(teacher)) % self.queue.shape[1]
        return (loss + (targets * targets.log()).sum(dim=1).mean()).item()

    def found(self) -> dict[str, Tensor]:
        return {**super().found(), "queue.keys": self.queue.T}
