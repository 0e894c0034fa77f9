"""SimCLR, SupCon, MoCo and the workbench, step by step as their authors' code trains them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from authors_parts import (
    BATCH,
    LARS,
    TOTAL,
    AdamW,
    Authors,
    Copy,
    LARSOfSimCLR,
    NoShift,
    Optimizer,
    Trunk,
    block,
    by_epoch,
    follow,
    warm_cosine,
)
from torch import Tensor, nn


class SimCLR(Authors):
    """google-research/simclr: model.py, objective.py, model_util.py. (Its cosine is spread over one step more than are
    made, N·E // B + 1.)"""

    def __init__(self, layers: int, tau: float, base: float, weight_decay: float) -> None:
        super().__init__()
        self.backbone = Trunk()
        hidden = [part for _ in range(layers - 1) for part in block(6, 6)]
        self.projector = nn.Sequential(*hidden, nn.Linear(6, 5, bias=False), NoShift(5))
        self.tau, self.base = tau, base
        self.optimizer = LARSOfSimCLR(self.parameters(), weight_decay)

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        hidden = F.normalize(self.projector(self.backbone(torch.cat(views))), dim=1)
        a, b = hidden.chunk(2)
        loss = self.loss(a, b)
        self.backward(loss)
        self.optimizer.step(warm_cosine(self.base, t, 5))
        return loss.item()

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        itself, target = 1e9 * torch.eye(len(a)), torch.arange(len(a))
        aa, bb = a @ a.T / self.tau - itself, b @ b.T / self.tau - itself
        ab, ba = a @ b.T / self.tau, b @ a.T / self.tau
        return F.cross_entropy(torch.cat((ab, aa), 1), target) + F.cross_entropy(torch.cat((ba, bb), 1), target)


class DCL(SimCLR):
    """Decoupled-Contrastive-Learning (raminnakhli): loss/dcl.py and `train` of experiment/simclr/main.py, within the
    training step of SimCLR's authors. DCLW's weights, through which that code lets the gradient, are constants here, as
    sslcli and lightly have them."""

    def __init__(self, weighted: bool, tau: float, base: float, weight_decay: float) -> None:
        super().__init__(2, tau, base, weight_decay)
        self.weighted = weighted

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        return self.one_way(a, b) + self.one_way(b, a)

    def one_way(self, a: Tensor, b: Tensor) -> Tensor:
        alike = (a * b).sum(dim=1)
        weight = 2 - len(a) * (alike.detach() / 0.5).softmax(dim=0) if self.weighted else 1.0
        own = torch.eye(len(a), dtype=torch.float64).repeat(1, 2) * math.log(1e-45)
        negative = torch.cat((a @ a.T, a @ b.T), dim=1) / self.tau + own
        return (negative.logsumexp(dim=1) - weight * alike / self.tau).mean()


class SupCon(Authors):
    """SupContrast: main_supcon.py, losses.py, util.py, networks/resnet_big.py; learning rate without `--cosine`."""

    def __init__(self, tau: float, base: float) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
        self.tau, self.base = tau, base
        self.optimizer = Optimizer(self.parameters(), 1e-4)

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        features = F.normalize(self.projector(self.backbone(torch.cat(views))), dim=1)
        logits = features @ features.T / self.tau
        logits = logits - logits.max(dim=1, keepdim=True).values.detach()
        others = 1 - torch.eye(len(features), dtype=torch.float64)
        same = (labels.view(-1, 1) == labels.view(1, -1)).double().repeat(2, 2) * others
        log_prob = logits - (logits.exp() * others).sum(dim=1, keepdim=True).log()
        loss = (-(self.tau / 0.07) * (same * log_prob).sum(dim=1) / same.sum(dim=1)).mean()
        self.backward(loss)
        epoch = t // 5 + 1  # counted from 1, and lowered after these
        self.optimizer.step(self.base * 0.1 ** sum(epoch > last for last in (1,)))
        return loss.item()


class NNCLR(Authors):
    """The algorithm in the paper's appendix, as solo-learn has it (methods/nnclr.py, losses/nnclr.py); optimizer and
    schedule by the paper."""

    def __init__(self, tau: float, base: float, weight_decay: float) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(*block(6, 7), *block(7, 7), nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5))
        self.predictor = nn.Sequential(*block(5, 7), nn.Linear(7, 5))
        self.tau, self.base, self.pointer = tau, base, 0
        self.optimizer = LARS(self.parameters(), weight_decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        super().load(weights)
        self.queue, self.classes = weights["queue.keys"].clone(), weights["queue.labels"].clone()

    def one_way(self, embedding: Tensor, prediction: Tensor) -> Tensor:
        neighbor = self.queue[(embedding @ self.queue.T).argmax(dim=1)]
        logits = neighbor @ F.normalize(prediction, dim=1).T / self.tau
        return F.cross_entropy(logits, torch.arange(len(logits)))

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        z1, z2 = (self.projector(self.backbone(x)) for x in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        u1, u2 = F.normalize(z1.detach(), dim=1), F.normalize(z2.detach(), dim=1)
        loss = self.one_way(u1, p2) / 2 + self.one_way(u2, p1) / 2
        self.queue[self.pointer : self.pointer + len(u1)] = u1
        self.classes[self.pointer : self.pointer + len(u1)] = labels
        self.pointer = (self.pointer + len(u1)) % len(self.queue)
        self.backward(loss)
        self.optimizer.step(warm_cosine(self.base, t, 5))
        return loss.item()

    def found(self) -> dict[str, Tensor]:
        return {**super().found(), "queue.keys": self.queue.clone(), "queue.labels": self.classes.clone()}


class MoCo(Authors):
    """moco: moco/builder.py and main_moco.py, v1 and v2; with `alpha` EqCo's margin of its equation 6."""

    early = ("momentum_encoder.",)

    def __init__(self, projector: nn.Module, tau: float, m: float, base: float, alpha: float | None = None) -> None:
        super().__init__()
        self.backbone, self.projector = Trunk(), projector
        self.momentum_encoder = Copy(self.backbone, projector)
        self.tau, self.m, self.base, self.alpha, self.pointer = tau, m, base, alpha, 0
        self.optimizer = Optimizer(self.parameters(), 1e-4)

    def load(self, weights: dict[str, Tensor]) -> None:
        super().load(weights)
        self.queue = weights["queues.0.keys"].T.clone()

    def rate(self, t: int) -> float:
        """v2's; v1's falls by a factor of 10 at milestones."""
        return by_epoch(self.base, t)

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        q = F.normalize(self.projector(self.backbone(views[0])), dim=1)
        with torch.no_grad():
            online = [*self.backbone.parameters(), *self.projector.parameters()]
            follow(self.momentum_encoder.parameters(), online, self.m)
            k = F.normalize(self.momentum_encoder(views[1]), dim=1)
        positive, negative = (q * k).sum(dim=1, keepdim=True), q @ self.queue.clone()
        if self.alpha is not None:
            positive = positive - self.tau * math.log(self.alpha / negative.shape[1])
        logits = torch.cat((positive, negative), dim=1) / self.tau
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
        self.queue[:, self.pointer : self.pointer + len(k)] = k.T
        self.pointer = (self.pointer + len(k)) % self.queue.shape[1]
        self.backward(loss)
        self.optimizer.step(self.rate(t))
        return loss.item()

    def found(self) -> dict[str, Tensor]:
        return {**super().found(), "queues.0.keys": self.queue.T}


class MoCoV1(MoCo):
    """The same with the schedule of v1: milestones of 60 and 80%."""

    def rate(self, t: int) -> float:
        return self.base * 0.1 ** sum(t / 5 >= milestone for milestone in (0.6 * 2, 0.8 * 2))


class Workbench(Authors):
    """untitled-ai/self_supervised: moco.py. Its momentum encoder is updated before the optimizer's step; here, as
    sslcli documents, after it."""

    def __init__(self, projector: nn.Module, predictor: nn.Module, base: float, factor: float, **flags: Any) -> None:
        super().__init__()
        self.backbone, self.projector, self.predictor = Trunk(), projector, predictor
        self.momentum_encoder = Copy(self.backbone, projector)
        self.base, self.factor, self.flags, self.pointer = base, factor, flags, 0
        online = [*self.backbone.parameters(), *projector.parameters(), *predictor.parameters()]
        self.optimizer = Optimizer(online, 1e-4)

    def load(self, weights: dict[str, Tensor]) -> None:
        super().load(weights)
        if self.flags["negatives"] == "queue":
            self.queue = weights["queue.keys"].T.clone()

    def loss(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Of one direction, and its keys."""
        q = F.normalize(self.predictor(self.projector(self.backbone(query))), dim=1)
        with torch.no_grad():
            k = F.normalize(self.momentum_encoder(key), dim=1)
        kind, negatives, tau = self.flags["loss"], self.flags["negatives"], 0.2
        if negatives == "batch":
            logits, target = q @ k.T, torch.arange(len(q))
        else:
            logits, target = (q * k).sum(dim=1, keepdim=True), torch.zeros(len(q), dtype=torch.int64)
            if negatives == "queue":
                logits = torch.cat((logits, q @ self.queue.clone()), dim=1)
        ones = torch.zeros_like(logits).scatter_(1, target[:, None], 1)
        if kind == "ip":
            return ((1 - 2 * ones) * logits + 1).sum(dim=1).mean(), k
        if kind == "bce":
            return F.binary_cross_entropy_with_logits(logits / tau, ones) * logits.shape[1], k
        if (alpha := self.flags.get("alpha")) is None:
            return F.cross_entropy(logits / tau, target), k
        weight = alpha / (BATCH if negatives == "batch" else self.queue.shape[1])
        exponents = (logits / tau).exp()
        rest = exponents.sum(dim=1, keepdim=True) - exponents
        return F.nll_loss(logits / tau - (exponents + weight * rest).log(), target), k

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        loss, k = self.loss(views[0], views[1])
        if self.flags.get("both"):
            loss = loss + self.loss(views[1], views[0])[0]
        loss = loss * self.factor
        if self.flags["negatives"] == "queue":
            self.queue[:, self.pointer : self.pointer + len(k)] = k.T
            self.pointer = (self.pointer + len(k)) % self.queue.shape[1]
        self.backward(loss)
        self.optimizer.step(by_epoch(self.base, t))
        online = [*self.backbone.parameters(), *self.projector.parameters()]
        follow(self.momentum_encoder.parameters(), online, 0.9)
        return loss.item()

    def found(self) -> dict[str, Tensor]:
        """Without the copy's running statistics: sslcli passes the views in another order, and nothing reads them."""
        found = {name: value for name, value in super().found().items() if ".running_" not in name}
        return {**found, **({"queue.keys": self.queue.T} if self.flags["negatives"] == "queue" else {})}


class MoCoV3(Authors):
    """moco-v3: moco/builder.py, moco/optimizer.py, main_moco.py; `vit`: its heads, temperature and AdamW for ViTs."""

    early = ("momentum_encoder.",)

    def __init__(self, base: float, weight_decay: float, vit: bool) -> None:
        super().__init__()
        self.backbone = Trunk()
        hidden = [*block(6, 7), *(block(7, 7) if vit else [])]
        self.projector = nn.Sequential(*hidden, nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5, affine=False))
        end = [nn.BatchNorm1d(5, affine=False)] if vit else []
        self.predictor = nn.Sequential(*block(5, 7), nn.Linear(7, 5, bias=False), *end)
        self.momentum_encoder = Copy(self.backbone, self.projector)
        self.base, self.tau = base, 0.2 if vit else 1.0
        kind: type[Optimizer] = AdamW if vit else LARS
        self.optimizer = kind(self.parameters(), weight_decay)

    def ctr(self, q: Tensor, k: Tensor) -> Tensor:
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / self.tau
        return F.cross_entropy(logits, torch.arange(len(q))) * 2 * self.tau

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        q1, q2 = (self.predictor(self.projector(self.backbone(x))) for x in views)
        with torch.no_grad():
            m = 1 - 0.5 * (1 + math.cos(math.pi * t / TOTAL)) * (1 - 0.9)
            follow(self.momentum_encoder.parameters(), [*self.backbone.parameters(), *self.projector.parameters()], m)
            k1, k2 = (self.momentum_encoder(x) for x in views)
        loss = self.ctr(q1, k2) + self.ctr(q2, k1)
        self.backward(loss)
        self.optimizer.step(warm_cosine(self.base, t, 5))
        return loss.item()
