"""Prototypes: trainable unit vectors that embeddings are compared with.

Caron et al. (SwAV), *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments*,
https://arxiv.org/abs/2006.09882.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Linear):
    """A linear layer without bias whose rows have length 1, from the start and after each `normalize`.

    Nothing holds them at length 1 while the optimizer moves them: call `normalize` after each step.
    """

    def __init__(self, dim: int, count: int) -> None:
        """`count` prototypes, K, for embeddings of `dim` dimensions."""
        super().__init__(dim, count, bias=False)
        self.normalize()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Returns the scores (N, K), at least float32 regardless of autocast: divided by ε = 0.05, half precision's
        rounding would show.

        Args:
            embeddings: (N, D), L2-normalized for the scores to be cosines.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(embeddings.dtype, self.weight.dtype), torch.float32)
            return F.linear(embeddings.to(dtype), self.weight.to(dtype))

    @torch.no_grad()
    def normalize(self) -> None:
        """Brings every row back to length 1, in place; a row of zeros stays."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
