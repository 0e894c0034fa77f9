"""The parts of a training step, measured by wrapping functions and modules: every moment belongs to one part.

- `network`: backbone, projector, predictor, prototypes, momentum encoder, forward and backward;
- `loss`: the rest of `Method.forward`, and the backward pass until a gradient reaches the network. The losses come last
  in the forward pass, and autograd goes in the reverse order, so that the loss ends at the first gradient of an output
  of the network;
- `sinkhorn`: SwAV's assignments, with the queue's scores; `metrics`: monitors that are functions of their own (those
  that a function named `…_and_metrics` returns with the loss are counted there);
- `queue`: `Queue.push`; `ema`: `MomentumEncoder.update`; `after step`: the rest of it, such as DINO's center;
- `clip`, `optimizer`.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.method import Method
from sslcli.methods.swav import SwAV
from sslcli.modules.dino_head import DINOHead
from sslcli.modules.momentum import MomentumEncoder
from sslcli.modules.queue import Queue

PARTS = ("network", "loss", "sinkhorn", "metrics", "queue", "ema", "after step", "clip", "optimizer")
MONITORS = ("mean_cosines", "class_cosines")


class Clock:
    """Seconds of each part: processor time on a CPU, which other load on the machine affects little; on CUDA by events,
    which are read after the step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.open: list[str] = []
        self.marks: list[tuple[str, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The time of the block counts for `name`, except for that of parts within it."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        self._mark(name)
        self.open.append(name)

    def leave(self) -> None:
        self.open.pop()
        self._mark(self.open[-1] if self.open else "")

    def become(self, name: str) -> None:
        """Ends the innermost part and begins `name` instead."""
        self.open[-1] = name
        self._mark(name)

    def _mark(self, name: str) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.process_time()))

    def read(self) -> dict[str, float]:
        """Returns the seconds of each part since the last reading."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (name, began), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            if name:
                seconds[name] += began.elapsed_time(ended) / 1e3 if self.device.type == "cuda" else ended - began
        self.marks.clear()
        return dict(seconds)


def watch(method: Method, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """Wraps the parts of a method and its optimizer, permanently.

    The caller opens `loss` around the forward and around the backward pass.
    """
    for module in _network(method):
        _watch_network(module, clock)
    names = [cls.__module__ for cls in type(method).__mro__ if cls.__module__.startswith("sslcli.methods")]
    for owner in (sys.modules[name] for name in names):
        for monitor in MONITORS:
            if hasattr(owner, monitor):
                _wrap(owner, monitor, "metrics", clock)
    for cls, name, part in (
        (MomentumEncoder, "update", "ema"),
        (Queue, "push", "queue"),
        (SwAV, "_assign", "sinkhorn"),
    ):
        _wrap(cls, name, part, clock)
    _wrap(method, "after_step", "after step", clock)
    _wrap(optimizer, "step", "optimizer", clock)


def _network(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a method calls, and their submodules that it also calls."""
    for child in module.children():
        if isinstance(child, MomentumEncoder | DINOHead):
            yield from _network(child)
        if not isinstance(child, nn.ModuleList | Queue):
            yield child


def _watch_network(module: nn.Module, clock: Clock) -> None:
    forward = module.forward

    def reached(gradient: Tensor) -> None:
        if clock.open == ["loss"]:
            clock.become("network")

    def timed(*arguments: Any) -> Any:
        if clock.open != ["loss"]:  # already within the network, or called by another part
            return forward(*arguments)
        with clock.part("network"):
            output = forward(*arguments)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(reached)
        return output

    module.forward = timed


def _wrap(owner: Any, name: str, part: str, clock: Clock) -> None:
    original = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        with clock.part(part):
            return original(*arguments, **named)

    setattr(owner, name, timed)
