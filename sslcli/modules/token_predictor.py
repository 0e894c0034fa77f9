"""A narrow transformer that predicts something for hidden patches from the tokens of visible ones.

MAE's decoder, He et al., https://arxiv.org/abs/2111.06377; I-JEPA's predictor, Assran et al.,
https://arxiv.org/abs/2301.08243.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options

from .masks import take
from .transformer import EPS, Initialization, TransformerBlock, initialize_transformer, sincos_positions

#: Dimensions of an attention head where no number of heads is given: that of MAE's decoder, of I-JEPA's predictor of
#: width 384 behind a ViT-B, and of nearly all encoders half of it.
HEAD_DIM = 32


class TokenPredictorOptions(Options):
    """Size of a narrow transformer."""

    dim: int | None = Field(default=None, ge=4, multiple_of=4)
    """Its width."""
    depth: int = Field(default=8, ge=1, le=1000)
    """Number of blocks."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; null: one for every 32 dimensions."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.dim is not None and self.dim % self.heads_of(self.dim):
            raise ValueError(f"dim {self.dim} is not divisible by {self.heads_of(self.dim)} heads; set heads")
        return self

    def heads_of(self, dim: int) -> int:
        """Returns the number of heads at a width."""
        return self.heads or max(1, dim // HEAD_DIM)


class TokenPredictor(nn.Module):
    """Tokens of visible patches → predictions for hidden ones, which enter as a mask token and their position.

    Attributes:
        mask_token: (1, 1, D), what all hidden patches begin as.
        positions: (side, side, D), fixed sines and cosines; of a smaller grid its upper left part. Not in checkpoints,
            being the same in all runs.
    """

    positions: Tensor

    def __init__(
        self, inputs: int, outputs: int, side: int, options: TokenPredictorOptions, dim: int, init: Initialization
    ) -> None:
        """Args:
        inputs: dimensions of the tokens.
        outputs: dimensions of a prediction.
        side: rows and columns of the largest grid of patches.
        options: `depth` and `heads`.
        dim: D, the width.
        init: how the weights are drawn; the mask token always with std 0.02.

        Raises:
            UserError: the width cannot be shared by the heads.
        """
        super().__init__()
        if dim % options.heads_of(dim):
            raise UserError(
                f"method: {dim} dimensions, the width for this network, are not divisible by {options.heads} heads: "
                "set dim beside heads"
            )
        self.embed = nn.Linear(inputs, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = sincos_positions(side, dim)[0, 1:].reshape(side, side, dim)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, options.heads_of(dim)) for _ in range(options.depth)))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.out = nn.Linear(dim, outputs)
        initialize_transformer(self, init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, tokens: Tensor, seen: Tensor, hidden: Tensor, grid: tuple[int, int], cls: Tensor | None = None
    ) -> Tensor:
        """Returns predictions (N, B, M, outputs), for each block of hidden patches without a view of the other ones.

        Args:
            tokens: (N, K, inputs) of the visible patches.
            seen: (N, K) int64, their places.
            hidden: (N, B, M) int64, places of the M patches of each of B blocks.
            grid: rows and columns of all patches.
            cls: (N, inputs), a class token that is seen too, without a position.
        """
        count, blocks, length = hidden.shape
        rows, columns = grid
        positions = self.positions[:rows, :columns].reshape(1, rows * columns, -1).expand(count, -1, -1)
        known = self.embed(tokens) + take(positions, seen)
        if cls is not None:
            known = torch.cat([self.embed(cls).unsqueeze(1).to(known.dtype), known], dim=1)
        asked = self.mask_token + take(positions, hidden.flatten(1))
        known = known.unsqueeze(1).expand(-1, blocks, -1, -1).flatten(0, 1)
        x = torch.cat([known, asked.reshape(count * blocks, length, -1).to(known.dtype)], dim=1)
        x = self.out(self.norm(self.blocks(x))[:, -length:])
        return x.reshape(count, blocks, length, -1)
