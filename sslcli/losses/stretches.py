"""How much of a large matrix is made at a time, where a loss needs no more of it than sums."""

from __future__ import annotations

import torch

#: Elements of a stretch. On a CPU they stay in a core's cache: fresh memory costs more than the arithmetic. Elsewhere
#: it is the starts of kernels that cost, and stretches only bound the memory.
_ELEMENTS = {"cpu": 2**17}
_ELEMENTS_ELSEWHERE = 2**26


def stretch_length(width: int, device: torch.device) -> int:
    """Returns how many rows (or columns) of `width` elements each make a stretch: at least 1."""
    return max(_ELEMENTS.get(device.type, _ELEMENTS_ELSEWHERE) // max(width, 1), 1)
