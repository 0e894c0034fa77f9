"""SEED and DenseCL, step by step as their authors' code trains them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from authors_parts import Authors, Copy, Optimizer, Trunk, by_epoch, follow
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


def mlp(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, outputs))


class DenseCL(Authors):
    """DenseCL: openselfsup/models/densecl.py, necks.py (`DenseCLNeck`), heads/contrastive_head.py; one process, which
    need not shuffle. Its 1 × 1 convolutions are linear layers here. With `grid` the places that are compared are pooled
    too, where its code compares those before pooling."""

    early = ("momentum_encoder.",)

    def __init__(self, dim: int, tau: float, m: float, share: float, base: float, grid: int | None = None) -> None:
        super().__init__()
        self.backbone, self.projector, self.dense_projector = Trunk(), mlp(dim), mlp(dim)
        self.momentum_encoder = Copy(self.backbone, self.projector)
        self.momentum_encoder.dense_projector = mlp(dim).requires_grad_(False)
        self.optimizer = Optimizer(self.parameters(), 1e-4)
        self.tau, self.m, self.share, self.base, self.grid, self.pointer = tau, m, share, base, grid, 0

    def load(self, weights: dict[str, Tensor]) -> None:
        super().load(weights)
        self.queue, self.dense_queue = weights["queue.keys"].T.clone(), weights["dense_queue.keys"].T.clone()

    def neck(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The map, and what is made of it: of the whole image, of each place, and their mean; channels first."""
        features = network.backbone.map(images)
        whole = network.projector(features.mean(dim=(2, 3)))
        if self.grid is not None:
            features = F.adaptive_avg_pool2d(features, self.grid)
        dense = network.dense_projector(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        parts = features.flatten(2), whole, dense.flatten(2), dense.mean(dim=(2, 3))
        return tuple(F.normalize(part, dim=1) for part in parts)

    def contrast(self, positive: Tensor, negative: Tensor) -> Tensor:
        logits = torch.cat((positive, negative), dim=1) / self.tau
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        own, q, q_grid, _ = self.neck(self, views[0])
        with torch.no_grad():
            online = [*self.backbone.parameters(), *self.projector.parameters(), *self.dense_projector.parameters()]
            follow(self.momentum_encoder.parameters(), online, self.m)
            other, k, k_grid, k_mean = self.neck(self.momentum_encoder, views[1])
        most = (own.transpose(1, 2) @ other).max(dim=2).indices  # N×L
        matched = torch.stack([k_grid[n][:, most[n]] for n in range(len(q))])
        single = self.contrast((q * k).sum(dim=1, keepdim=True), q @ self.queue.clone())
        rows = q_grid.transpose(1, 2).reshape(-1, q.shape[1])
        dense = self.contrast((q_grid * matched).sum(dim=1).reshape(-1, 1), rows @ self.dense_queue.clone())
        loss = (1 - self.share) * single + self.share * dense
        for queue, keys in ((self.queue, k), (self.dense_queue, k_mean)):
            queue[:, self.pointer : self.pointer + len(keys)] = keys.T
        self.pointer = (self.pointer + len(k)) % self.queue.shape[1]
        self.backward(loss)
        self.optimizer.step(by_epoch(self.base, t))
        return loss.item()

    def found(self) -> dict[str, Tensor]:
        return {**super().found(), "queue.keys": self.queue.T, "dense_queue.keys": self.dense_queue.T}
