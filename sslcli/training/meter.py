"""What the steps between two log lines add up to: values on the device, images, and the time they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sslcli import distributed


class Arriving:
    """A number on its way from the device, for which nobody waits."""

    def __init__(self, value: Tensor, divisor: int = 1) -> None:
        self.divisor = divisor
        self.value = value.detach()
        self.copied: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            self.value = self.value.to("cpu", non_blocking=True)  # torch takes pinned memory for it
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record(torch.cuda.current_stream(value.device))

    def get(self) -> float | None:
        """Returns the number over the divisor if it is there, else None."""
        if self.copied is not None and not self.copied.query():  # type: ignore[no-untyped-call]
            return None
        return float(self.value) / self.divisor


class Meter:
    """Sums of the values that steps report, kept on the device until a log line is due, and the time."""

    def __init__(self, device: torch.device) -> None:
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._before = (0, 0.0, 0.0)
        self.images, self.waited, self.paused = self._before
        self.reset()

    def totals(self) -> tuple[int, float, float]:
        """Returns this process's images, and the seconds that it waited for them and that it was paused, over all
        steps so far."""
        images, waited, paused = self._before
        return images + self.images, waited + self.waited, paused + self.paused

    def reset(self) -> None:
        self._before = self.totals()
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
