"""torch's own AdamW."""

from __future__ import annotations

import torch

from .adam import Adam


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    paper = "https://arxiv.org/abs/1711.05101"
    kind = torch.optim.AdamW
