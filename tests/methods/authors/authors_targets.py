"""BYOL, SimSiam, DINO, SwAV, Barlow Twins and VICReg, step by step as their authors' code trains them."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from authors_parts import (
    EPOCHS,
    LARC,
    LARS,
    PER_EPOCH,
    TOTAL,
    AdamW,
    Authors,
    Copy,
    Optimizer,
    Trunk,
    block,
    by_epoch,
    follow,
    warm_cosine,
)
from torch import Tensor, nn


class BYOL(Authors):
    """deepmind-research/byol: byol_experiment.py, utils/{networks,optimizers,schedules,helpers}.py. (There the target
    network starts from weights of its own.)"""

    def __init__(self, base: float, weight_decay: float) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(*block(6, 7, bias=True), nn.Linear(7, 5, bias=False))
        self.predictor = nn.Sequential(*block(5, 7, bias=True), nn.Linear(7, 5, bias=False))
        self.momentum_encoder = Copy(self.backbone, self.projector)
        self.base = base
        self.optimizer = LARS(self.parameters(), weight_decay)

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        p1, p2 = (self.predictor(self.projector(self.backbone(x))) for x in views)
        z1, z2 = (self.momentum_encoder(x).detach() for x in views)
        errors = [(F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(dim=1) for p, z in ((p1, z2), (p2, z1))]
        loss = (errors[0] + errors[1]).mean()
        self.backward(loss)
        self.optimizer.step(warm_cosine(self.base, t, 5))
        tau = 1 - (1 - 0.9) * 0.5 * (1 + math.cos(math.pi * t / TOTAL))
        follow(self.momentum_encoder.parameters(), [*self.backbone.parameters(), *self.projector.parameters()], tau)
        return loss.item()


class SimSiam(Authors):
    """simsiam: simsiam/builder.py, main_simsiam.py with `--fix-pred-lr`."""

    def __init__(self, base: float) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(
            *block(6, 7), *block(7, 7), nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5, affine=False)
        )
        self.predictor = nn.Sequential(*block(5, 4), nn.Linear(4, 5))
        self.base = base
        self.main = Optimizer([*self.backbone.parameters(), *self.projector.parameters()], 1e-4)
        self.fixed = Optimizer(self.predictor.parameters(), 1e-4)

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        z1, z2 = (self.projector(self.backbone(x)) for x in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        cosine = nn.CosineSimilarity(dim=1)
        loss = -(cosine(p1, z2.detach()).mean() + cosine(p2, z1.detach()).mean()) * 0.5
        self.backward(loss)
        self.main.step(by_epoch(self.base, t))
        self.fixed.step(self.base)
        return loss.item()


def by_resolution(backbone: nn.Module, views: list[Tensor]) -> Tensor:
    """MultiCropWrapper of dino, `forward` of swav's resnet50.py: one pass for the views of each size."""
    groups = [list(same) for _, same in groupby(views, key=lambda view: view.shape[-1])]
    return torch.cat([backbone(torch.cat(same)) for same in groups])


class Last(nn.Module):
    """`weight_norm` of a linear layer without bias; its g is 1, and trained unless it is fixed."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(9, 5))
        if not fixed:
            self.gain = nn.Parameter(torch.ones(9, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight / self.weight.norm(dim=1, keepdim=True)
        return x @ (rows * self.gain if hasattr(self, "gain") else rows).T


class DINOHead(nn.Module):
    """DINOHead of dino's vision_transformer.py."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 7), nn.GELU(), nn.Linear(7, 5))
        self.last_layer = Last(fixed)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=1))


def cosine_scheduler(base: float, final: float, warmup: int = 0) -> np.ndarray:
    """cosine_scheduler of dino's utils.py."""
    steps = np.arange(TOTAL - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate((np.linspace(0, base, warmup), cosine))


class DINO(Authors):
    """dino: main_dino.py, utils.py."""

    def __init__(self, base: float, fixed: bool, clip: float) -> None:
        super().__init__()
        self.backbone, self.head = Trunk(), DINOHead(fixed)
        self.teacher = Copy(self.backbone, self.head)
        self.register_buffer("center", torch.zeros(9))
        self.rates, self.decays = cosine_scheduler(base, 1e-6, 5), cosine_scheduler(0.04, 0.4)
        self.momenta, self.clip = cosine_scheduler(0.9, 1), clip
        self.temperatures = np.linspace(0.03125, 0.0625, EPOCHS)  # exact in float32
        self.optimizer = AdamW(self.parameters(), 0.0, decayed=False)

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        epoch = t // PER_EPOCH
        teacher_output = self.teacher.projector(by_resolution(self.teacher.backbone, views[:2]))
        student_output = self.head(by_resolution(self.backbone, views))
        student = (student_output / 0.1).chunk(len(views))
        teacher = F.softmax((teacher_output - self.center) / self.temperatures[epoch], dim=-1).detach().chunk(2)
        terms = [
            torch.sum(-q * F.log_softmax(s, dim=-1), dim=-1).mean()
            for i, q in enumerate(teacher) for v, s in enumerate(student) if v != i
        ]  # fmt: skip
        loss = sum(terms) / len(terms)
        self.center = self.center * 0.9 + teacher_output.detach().mean(dim=0) * 0.1
        self.backward(loss)
        for p in self.parameters():
            if p.grad is not None and (factor := self.clip / (p.grad.norm() + 1e-6)) < 1:
                p.grad *= factor
        if epoch < 1:
            for p in self.head.last_layer.parameters():
                p.grad = None
        self.optimizer.weight_decay = self.decays[t]
        self.optimizer.step(self.rates[t])
        online = [*self.backbone.parameters(), *self.head.parameters()]
        follow(self.teacher.parameters(), online, self.momenta[t])
        return loss.item()


class SwAV(Authors):
    """swav: main_swav.py; prototypes frozen for 2 steps, a queue of 2 batches for each global view from epoch 1."""

    def __init__(self, base: float) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(*block(6, 7, bias=True), nn.Linear(7, 5))
        self.prototypes = nn.Linear(5, 9, bias=False)
        self.base, self.queue = base, None
        self.optimizer = LARC(self.parameters(), 1e-2)

    def rate(self, t: int) -> float:
        warmup, steps = np.linspace(0.1, self.base, PER_EPOCH), np.arange(TOTAL - PER_EPOCH)
        final = 0.001 * self.base
        cosine = [final + 0.5 * (self.base - final) * (1 + math.cos(math.pi * s / len(steps))) for s in steps]
        return np.concatenate((warmup, cosine))[t]

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        embedding = F.normalize(self.projector(by_resolution(self.backbone, views)), dim=1)
        output, count = self.prototypes(embedding), len(views[0])
        if t // PER_EPOCH >= 1 and self.queue is None:
            self.queue = torch.zeros(2, 2 * count, 5, dtype=torch.float64)
        loss = torch.zeros((), dtype=torch.float64)
        for crop in range(2):
            own = slice(count * crop, count * (crop + 1))
            with torch.no_grad():
                out = output[own].detach()
                if self.queue is not None:
                    if not torch.all(self.queue[crop, -1] == 0):
                        out = torch.cat((self.queue[crop] @ self.prototypes.weight.T, out))
                    self.queue[crop, count:] = self.queue[crop, :-count].clone()
                    self.queue[crop, :count] = embedding[own]
                q = sinkhorn(torch.exp(out / 0.05).T)[-count:]
            for v, p in enumerate(output.chunk(len(views))):
                if v != crop:
                    loss = loss - (q * F.softmax(p / 0.1, dim=1).log()).sum(dim=1).mean() / (len(views) - 1)
        loss = loss / 2
        self.backward(loss)
        if t < 2:
            self.prototypes.weight.grad = None
        self.optimizer.step(self.rate(t))
        return loss.item()

    def found(self) -> dict[str, Tensor]:
        """With prototypes as the next step begins with: sslcli normalizes them after the optimizer."""
        found = super().found()
        return {**found, "prototypes.weight": F.normalize(found["prototypes.weight"], dim=1)}


def sinkhorn(q: Tensor) -> Tensor:
    """distributed_sinkhorn on one process: prototypes × samples → samples × prototypes."""
    q = q / q.sum()
    for _ in range(3):
        q = q * ((1 / q.shape[0]) / q.sum(dim=1)).unsqueeze(1)
        q = q * ((1 / q.shape[1]) / q.sum(dim=0)).unsqueeze(0)
    return (q / q.sum(dim=0, keepdim=True)).T


def off_diagonal(x: Tensor) -> Tensor:
    return x[~torch.eye(len(x), dtype=torch.bool)]


class BarlowTwins(Authors):
    """barlowtwins: main.py. Its sum of C over processes carries no gradient, while batch norms are synchronized: with
    `processes` each loss sees only its own part of C, and gradients are averaged."""

    def __init__(self, base: float, weight_decay: float, processes: int = 1) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(*block(6, 7), *block(7, 7), nn.Linear(7, 5, bias=False))
        self.loss_norm = nn.BatchNorm1d(5, affine=False)
        self.base, self.processes = base, processes
        self.optimizer = LARS(self.parameters(), weight_decay)
        self.optimizer.biases = 0.024

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        z1, z2 = (self.loss_norm(self.projector(self.backbone(x))) for x in views)
        parts = [a.T @ b / len(z1) for a, b in zip(z1.chunk(self.processes), z2.chunk(self.processes), strict=True)]
        losses = []
        for part in parts:
            c = part + (sum(parts) - part).detach()
            losses.append((c.diagonal() - 1).square().sum() + 0.0051 * off_diagonal(c).square().sum())
        loss = sum(losses) / self.processes
        self.backward(loss)
        self.optimizer.step(warm_cosine(self.base, t, 5, final=0.001))
        return loss.item()

    def found(self) -> dict[str, Tensor]:
        return {name: value for name, value in super().found().items() if not name.startswith("loss_norm.")}


class VICReg(Authors):
    """vicreg: main_vicreg.py."""

    def __init__(self, base: float, weight_decay: float) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(*block(6, 7, bias=True), *block(7, 7, bias=True), nn.Linear(7, 5, bias=False))
        self.base = base
        self.optimizer = LARS(self.parameters(), weight_decay)

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        x, y = (self.projector(self.backbone(view)) for view in views)
        invariance = F.mse_loss(x, y)
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
        std_x, std_y = (torch.sqrt(z.var(dim=0) + 0.0001) for z in (x, y))
        variance = F.relu(1 - std_x).mean() / 2 + F.relu(1 - std_y).mean() / 2
        covariance = sum(off_diagonal(z.T @ z / (len(z) - 1)).square().sum() / 5 for z in (x, y))
        loss = 25.0 * invariance + 25.0 * variance + 1.0 * covariance
        self.backward(loss)
        self.optimizer.step(warm_cosine(self.base, t, 5, final=0.001))
        return loss.item()
