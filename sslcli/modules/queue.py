"""The queue of embeddings of earlier batches: a first-in, first-out ring of fixed length.

He et al. (MoCo), https://arxiv.org/abs/1911.05722.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Inner products made at a time by `nearest`: on a CPU they stay in the cache, on a GPU few kernels are launched.
_CHUNK_CPU, _CHUNK_GPU = 2**19, 2**27


class Queue(nn.Module):
    """The last `length` embeddings, oldest overwritten first; all of it is in buffers, so it survives a restart.

    The batch need not divide the length: a push wraps around. Filled with normalized random vectors at first, as
    MoCo's is, from torch's global generator.

    Attributes:
        keys: (length, dim) float32, in the ring's order, not by age.
        place: 0-dim int64, the index at which the next push begins.
        pushed: 0-dim int64, rows pushed since the start.
        labels: (length,) int64 of a `labeled` queue, else None: the keys' labels; −1 where there is none.
    """

    keys: Tensor
    place: Tensor
    pushed: Tensor
    labels: Tensor | None

    def __init__(self, length: int, dim: int, *, labeled: bool = False) -> None:
        """Raises ValueError if `length` is below 1."""
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue holds 1 embedding or more, not {length}")
        self.register_buffer("keys", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("labels", torch.full((length,), -1) if labeled else None)

    @torch.no_grad()
    def push(self, keys: Tensor, labels: Tensor | None = None) -> None:
        """Adds keys in place of the oldest, without waiting for the device. Call it from `after_step` only.

        Args:
            keys: (M, D), equal on every process (gathered); of more than `length` only the last ones stay.
            labels: (M,) integers, for a `labeled` queue; None: the keys have none.
        """
        length = len(self.keys)
        offset = max(len(keys) - length, 0)
        kept = keys[offset:].detach().to(self.keys.dtype)
        indices = (self.place + offset + torch.arange(len(kept), device=kept.device)) % length
        self.keys[indices] = kept
        if self.labels is not None:
            self.labels[indices] = torch.full_like(indices, -1) if labels is None else labels[offset:]
        self.place.copy_((self.place + len(keys)) % length)
        self.pushed.add_(len(keys))

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Returns the index (N,) of the key that has the largest inner product with each of the rows (N, D); the first
        of equal ones. The inner products are made and compared chunk by chunk, in float32 at least."""
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
            chunk = max((_CHUNK_CPU if rows.device.type == "cpu" else _CHUNK_GPU) // max(len(rows), 1), 1)
            best, index, start = None, torch.zeros(len(rows), dtype=torch.int64, device=rows.device), 0
            for part in torch.split(self.keys, chunk):
                value, place = (rows @ part.to(rows.dtype).T).max(dim=1)
                better = None if best is None else value > best
                index = place if better is None else torch.where(better, place + start, index)
                best = value if best is None else torch.maximum(best, value)
                start += len(part)
            return index

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
