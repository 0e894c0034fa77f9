"""Drop-path: while training, each sample skips a residual branch with a small probability.

Huang et al., *Deep Networks with Stochastic Depth*, https://arxiv.org/abs/1603.09382.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Zeroes a branch's output for each sample with probability `rate`, and divides the others' by 1 − rate.

    Belongs between a residual branch and its sum. In evaluation mode, and with rate 0, it returns its input and draws
    nothing; else it draws from torch's global generator of the input's device, which the training loop seeds for each
    step.

    Attributes:
        rate: the probability, in [0, 1); may be changed at any time (see `set_drop_path`).
    """

    def __init__(self, rate: float = 0.0) -> None:
        """Raises ValueError if `rate` is not in [0, 1)."""
        super().__init__()
        self.rate = _checked(rate)

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) → (N, …)."""
        if not self.training or self.rate == 0:
            return x
        # Drawn in float32, one number for each sample: half precision would round the probability.
        drawn = torch.rand((len(x), *[1] * (x.ndim - 1)), dtype=torch.float32, device=x.device)
        return x * (drawn >= self.rate).to(x.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


#: The same layer in torchvision and timm, by the names of its class and of its rate.
_OTHERS = {"StochasticDepth": "p", "DropPath": "drop_prob"}


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Sets the rate of every `DropPath` within `module`, torchvision's and timm's included; 0 switches them off, in
    training mode too. Raises ValueError if `rate` is not in [0, 1)."""
    rate = _checked(rate)
    for part in module.modules():
        if name := _name_of_rate(part):
            setattr(part, name, rate)


def grow_drop_path(module: nn.Module, rate: float) -> int:
    """Sets rates that grow linearly with depth, from 0 in the first block to `rate` in the last.

    A block is a module that has `DropPath`s of its own, or torchvision's, all of which get its rate; the order is that
    of `module.named_modules()`. A single block gets rate 0. timm's are left as they are: its networks have none where
    the rate was 0, so that depth can't be counted by them. Raises ValueError if `rate` is not in [0, 1).

    Returns:
        the number of blocks.
    """
    rate = _checked(rate)
    children = ([c for c in m.children() if _name_of_rate(c) in ("rate", "p")] for m in module.modules())
    blocks = [block for block in children if block]
    for depth, block in enumerate(blocks):
        for part in block:
            setattr(part, _name_of_rate(part) or "", rate * depth / max(len(blocks) - 1, 1))
    return len(blocks)


def drop_path_rates(module: nn.Module) -> list[float]:
    """Returns the rate of every `DropPath` within `module`, torchvision's and timm's included, in order; empty if there
    is none."""
    return [getattr(part, name) for part in module.modules() if (name := _name_of_rate(part))]


def _name_of_rate(part: nn.Module) -> str | None:
    """The attribute that holds a drop-path layer's rate; None for any other module."""
    name = "rate" if isinstance(part, DropPath) else _OTHERS.get(type(part).__name__)
    return name if name is not None and hasattr(part, name) else None


def _checked(rate: float) -> float:
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of drop-path must be in [0, 1), not {rate}")
    return float(rate)
