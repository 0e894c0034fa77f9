"""LeJEPA, step by step as its authors' minimal example trains it; the random directions are given, as the views are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from authors_parts import AdamW, Authors, Trunk, block, warm_cosine
from torch import Tensor, nn


class LeJEPA(Authors):
    """lejepa: MINIMAL.md, with the final learning rate of README.md; with `world` 1 the same as lejepa/univariate and
    lejepa/multivariate/slicing.py."""

    def __init__(self, lamb: float, base: float, weight_decay: float, directions: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.backbone = Trunk()
        self.projector = nn.Sequential(*block(6, 7), *block(7, 7), nn.Linear(7, 5))
        self.lamb, self.base, self.directions = lamb, base, directions
        self.optimizer = AdamW(self.parameters(), weight_decay)

    def sigreg(self, proj: Tensor, t: int, knots: int = 17) -> Tensor:
        points = torch.linspace(0, 3, knots, dtype=torch.float64)
        window = (-points.square() / 2).exp()
        weights = torch.full((knots,), 2 * 3 / (knots - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        scaled = (proj @ self.directions(t)).unsqueeze(-1) * points
        error = (scaled.cos().mean(-3) - window).square() + scaled.sin().mean(-3).square()
        return ((error @ (weights * window)) * proj.shape[-2]).mean()

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        proj = self.projector(self.backbone(torch.cat(views))).view(len(views), len(labels), -1)
        invariance = (proj.mean(0) - proj).square().mean()
        loss = self.sigreg(proj, t) * self.lamb + invariance * (1 - self.lamb)
        self.backward(loss)
        start = 0.01 * self.base * max(1 - t / 5, 0)  # the warm-up does not begin at 0
        self.optimizer.step(start + warm_cosine(self.base, t, 5, 0.001))
        return loss.item()
