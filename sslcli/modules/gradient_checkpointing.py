"""Gradient checkpointing: only each block's input is kept for the backward pass, and the rest is computed again.

Chen et al., *Training Deep Nets with Sublinear Memory Cost*, https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sslcli.contracts.backbone import BackboneOptions
from sslcli.contracts.options import FREE


class GradientCheckpointingOptions(BackboneOptions):
    """Options of a backbone that can save memory in training."""

    gradient_checkpointing: bool = Field(default=False, json_schema_extra=FREE)
    """Keep only each block's input for the backward pass and recompute the rest: much less memory, about a third more
    time, the same numbers."""


class CheckpointedBlocks(nn.Sequential):
    """`nn.Sequential` that in training keeps no activation inside its blocks, and draws the same drop-path twice.

    Features, gradients and the names of the weights are those of `nn.Sequential`, to which it falls back in evaluation
    mode and where no gradient is needed (a momentum encoder). No block may change a buffer in its forward pass, as
    batch norm does: it runs twice.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the blocks take and return: a ViT's have (N, L, D) → (N, L, D)."""
        return last_outputs(self, x, 1)[0]


def last_outputs(blocks: nn.Sequential, x: Tensor, count: int, *, recompute: bool = False) -> list[Tensor]:
    """Runs blocks one after the other and returns the last `count` outputs.

    Args:
        blocks: at least `count`.
        x: what the first block takes.
        count: of the outputs to return, that of the last block at the end.
        recompute: checkpoint the blocks in training, as `CheckpointedBlocks` always are.
    """
    recompute = (recompute or isinstance(blocks, CheckpointedBlocks)) and blocks.training and torch.is_grad_enabled()
    outputs = []
    for number, block in enumerate(blocks):
        x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        if number >= len(blocks) - count:
            outputs.append(x)
    return outputs
