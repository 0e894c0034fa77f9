"""EqCo: MoCo v2 with few negatives, weighted so that they behave like many.

Zhu et al., *EqCo: Equivalent Rules for Self-supervised Contrastive Learning*, https://arxiv.org/abs/2010.01929.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .moco_v2 import MoCoV2, MoCoV2Options


class EqCoOptions(MoCoV2Options):
    """Options of EqCo."""

    queue_size: int = Field(default=256, ge=1)
    """Keys in the queue, K: the negatives of every query. The paper's point is that few suffice; 256 is one batch."""
    alpha: float = Field(default=65536.0, gt=0)
    """Number of negatives that the loss emulates, α; each of the K counts α/K times. With α = K it is MoCo v2."""


class EqCo(MoCoV2):
    """EqCo: MoCo v2 with few negatives, weighted so that they behave like many.
    The loss is −log( e^{l₊} / (e^{l₊} + (α/K)·Σ e^{l₋}) ) on MoCo v2's embeddings."""

    Options = EqCoOptions
    paper = "https://arxiv.org/abs/2010.01929"
    year = 2020
    label: ClassVar[str] = "eqco"

    options: EqCoOptions

    def negative_weight(self) -> float:
        return self.options.alpha / self.options.queue_size
