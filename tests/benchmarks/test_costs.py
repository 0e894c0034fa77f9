"""The benchmark of costs outside the network: its parts add up, and each is measured where it happens."""

from __future__ import annotations

import time

import pytest
import torch
from benchmark_helpers import Import, benchmark  # noqa: F401  # a fixture
from torch import nn

# ruff: noqa: F811


def test_every_moment_belongs_to_the_innermost_part(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "process_time", lambda: float(next(now)))
    clock = benchmark("cost_parts").Clock(torch.device("cpu"))
    with clock.part("loss"):  # from 0
        with clock.part("network"):  # from 1 to 2
            pass
        clock.become("network")  # from 3 to 4
    with clock.part("ema"):  # from 5 to 6
        pass
    assert clock.read() == {"loss": 2.0, "network": 2.0, "ema": 1.0}
    assert clock.read() == {}


def test_the_loss_ends_when_a_gradient_reaches_the_network(benchmark: Import) -> None:
    parts = benchmark("cost_parts")
    clock, layer = parts.Clock(torch.device("cpu")), nn.Linear(3, 2)
    parts._watch_network(layer, clock)
    with clock.part("loss"):
        loss = layer(torch.ones(4, 3)).square().sum()
    assert [name for name, _ in clock.marks] == ["loss", "network", "loss", ""]
    clock.read()
    with clock.part("loss"):
        loss.backward()
    assert [name for name, _ in clock.marks] == ["loss", "network", ""]
