"""fp16's loss scale, and how many updates it cost: counted on the device, read when a log line is due."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

#: Skipped updates in a row after which a run stops. Each halves the scale: after twenty it is a millionth of what was
#: right before. Gradients that overflow even so most likely overflow in the network itself, which no scale prevents.
MOST_SKIPPED = 20
#: From so many on a log line comes with a warning: the first scale, 65,536, is seldom off by more.
_WORRYING = 6

log = logging.getLogger(__name__)


class LossScaler(torch.amp.GradScaler):
    """torch's GradScaler, which counts the updates that it skips because a gradient is not finite.

    The counts start anew when a run is resumed; the scale is part of the checkpoint.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        super().__init__(device.type, enabled=enabled)
        #: Skipped in a row until now, the most in a row, and all since `take`.
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = super().step(optimizer, *args, **kwargs)
        if self.is_enabled():
            found: list[Tensor] = list(self._found_inf_per_device(optimizer).values())
            skipped = torch.stack(found).amax().to(torch.int64)
            row, most, total = self._counts.unbind()
            row = (row + 1) * skipped
            self._counts = torch.stack([row, torch.maximum(row, most), total + skipped])
        return result

    def most_in_a_row(self) -> int:
        """Returns how many updates in a row were skipped, at most since the start (waits for the device)."""
        return int(self._counts[1]) if self.is_enabled() else 0

    def take(self) -> dict[str, float]:
        """Returns what a log line shows, nothing unless enabled, and begins to count anew (waits for the device)."""
        if not self.is_enabled():
            return {}
        row, _, skipped = self._counts.tolist()
        self._counts[2] = 0
        if row >= _WORRYING:
            log.warning(
                f"the last {row} updates were skipped, since gradients were not finite in fp16, and none changed the "
                f"weights; the loss scale is {self.get_scale():g}"
            )
        return {"loss_scale": self.get_scale(), "skipped_updates": skipped}
