"""The queue of embeddings of earlier batches: a first-in, first-out ring of fixed length.

He et al. (MoCo), https://arxiv.org/abs/1911.05722.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The last `length` embeddings, oldest overwritten first; all of it is in buffers, so it survives a restart.

    The batch need not divide the length: a push wraps around. Filled with normalized random vectors at first, as
    MoCo's is, from torch's global generator.

    Attributes:
        keys: (length, dim) float32, in the ring's order, not by age.
        place: 0-dim int64, the index at which the next push begins.
        pushed: 0-dim int64, rows pushed since the start.
    """

    keys: Tensor
    place: Tensor
    pushed: Tensor

    def __init__(self, length: int, dim: int) -> None:
        """Raises ValueError if `length` is below 1."""
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue holds 1 embedding or more, not {length}")
        self.register_buffer("keys", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Adds keys in place of the oldest, without waiting for the device. Call it from `after_step` only.

        Args:
            keys: (M, D), equal on every process (gathered); of more than `length` only the last ones stay.
        """
        length = len(self.keys)
        offset = max(len(keys) - length, 0)
        kept = keys[offset:].detach().to(self.keys.dtype)
        indices = (self.place + offset + torch.arange(len(kept), device=kept.device)) % length
        self.keys[indices] = kept
        self.place.copy_((self.place + len(keys)) % length)
        self.pushed.add_(len(keys))

    def full(self) -> Tensor:
        """Returns whether its random first content is all overwritten: a 0-dim bool on its device."""
        return self.pushed >= len(self.keys)

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of a queue of another length as one of this length: its newest rows, in front of which
        there are random ones where it had fewer. A longer queue counts as full once it has been filled anew."""
        keys, length = state["keys"], len(self.keys)
        by_age = torch.cat((self.keys.to(keys.device), keys.roll(-int(state["place"]), 0)))  # the oldest first
        pushed = state["pushed"] if length <= len(keys) else state["pushed"].clamp(max=len(keys))
        return {"keys": by_age[-length:], "place": torch.zeros_like(self.place), "pushed": pushed}
