"""Parts of vision transformers: blocks with timm's parameter names, fixed positions, images as patches and back.

Dosovitskiy et al., *An Image is Worth 16x16 Words*, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .drop_path import DropPath

#: Of every layer norm in a vision transformer.
EPS = 1e-6
#: How the weights of linear layers are drawn: from a truncated normal distribution, or Xavier's uniform one.
Initialization = Literal["normal", "xavier"]


class Attention(nn.Module):
    """Multi-head self-attention with a bias on queries, keys and values: (N, L, D) → (N, L, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        count, length, dim = x.shape
        qkv = self.qkv(x).reshape(count, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(count, length, dim))


class TransformerBlock(nn.Module):
    """x ← x + attention(norm(x)); x ← x + mlp(norm(x)): (N, L, D) → (N, L, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.drop_path1 = DropPath()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        layers = {"fc1": nn.Linear(dim, 4 * dim), "act": nn.GELU(), "fc2": nn.Linear(4 * dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.drop_path2 = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


def initialize_transformer(module: nn.Module, how: Initialization = "normal") -> None:
    """Draws the weights of every linear layer, and sets biases to 0.

    Args:
        module: a transformer, or parts of one.
        how: `normal`: truncated, with std 0.02 (DINO); `xavier`: uniform, queries, keys and values as three layers
            (MoCo v3, MAE).
    """
    for name, part in module.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        nn.init.zeros_(part.bias)
        if how == "normal":
            nn.init.trunc_normal_(part.weight, std=0.02)
        else:
            layers = 3 if name.rpartition(".")[2] == "qkv" else 1
            xavier_uniform(part.weight, part.in_features, part.out_features // layers)


def xavier_uniform(weight: Tensor, inputs: int, outputs: int) -> None:
    """Draws a weight from U(−a, a), a = √(6 / (inputs + outputs)) (Glorot and Bengio, 2010)."""
    bound = math.sqrt(6 / (inputs + outputs))
    nn.init.uniform_(weight, -bound, bound)


def sincos_positions(side: int, dim: int) -> Tensor:
    """Returns fixed positions (1, 1 + side², D): sin and cos of the column, then of the row; 0 for the class token.

    The frequencies are 10000^(−4i/D), i < D/4: MoCo v3, https://arxiv.org/abs/2104.02057. D must be a multiple of 4.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    rows = angles[:, None].expand(side, side, -1).reshape(side * side, -1)
    columns = angles[None].expand(side, side, -1).reshape(side * side, -1)
    grid = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), grid]).float()[None]


def patches_of(images: Tensor, size: int) -> Tensor:
    """Cuts images into patches: (N, C, H, W) → (N, L, size²·C), rows of patches first, a patch as rows of pixels.

    The order within a patch is that of MAE's authors: row, column, channel. H and W are multiples of `size`.
    """
    count, channels, height, width = images.shape
    cut = images.reshape(count, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, size * size * channels)


def images_of(patches: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Puts patches together again: (N, L, size²·C) → (N, C, H, W), the inverse of `patches_of` on that grid."""
    (rows, columns), count = grid, len(patches)
    whole = patches.reshape(count, rows, columns, size, size, -1).permute(0, 5, 1, 3, 2, 4)
    return whole.reshape(count, -1, rows * size, columns * size)
