"""What the steps between two log lines add up to: values on the device, images, and the time they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sslcli import distributed


class Meter:
    """Sums of the values that steps report, kept on the device until a log line is due, and the time."""

    def __init__(self, device: torch.device) -> None:
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.images = 0
        self.waited = self.paused = 0.0
        self.started = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The time of the block (callbacks, saving) does not count as training time."""
        began = time.perf_counter()
        yield
        self.paused += time.perf_counter() - began

    def seconds(self) -> float:
        return max(time.perf_counter() - self.started - self.paused, 1e-9)

    def add(self, step: int, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Takes one step's values (0-dim tensors)."""
        for name, value in {"loss": loss, **metrics}.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        bad = (self.first_bad_step < 0) & ~loss.detach().isfinite()
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)

    def bad_step(self) -> int | None:
        """Returns the first step whose loss was not finite (waits for the device)."""
        step = distributed.all_reduce_max(int(self.first_bad_step))
        return step if step >= 0 else None

    def means(self) -> dict[str, float]:
        """Returns the mean of everything since the last log line (waits for the device)."""
        values = distributed.all_reduce_mean(torch.stack(list(self.sums.values())) / self.count)
        return dict(zip(self.sums, values.tolist(), strict=True))
