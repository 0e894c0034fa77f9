"""The benchmark of costs outside the network: its parts add up, and each is found where it is."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cost_parts")


def test_every_instant_belongs_to_the_innermost_part(parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "process_time", lambda: float(next(now)))
    clock = parts.Clock(torch.device("cpu"))
    with clock.part("loss"):  # from 0
        with clock.part("network"):  # from 1 to 2
            pass
        clock.become("network")  # from 3 to 4
    with clock.part("ema"):  # from 5 to 6
        pass
    assert clock.read() == {"loss": 2.0, "network": 2.0, "ema": 1.0}
    assert clock.read() == {}


def test_the_loss_ends_in_the_backward_where_the_gradient_reaches_the_network(parts: ModuleType) -> None:
    clock, layer = parts.Clock(torch.device("cpu")), nn.Linear(3, 2)
    parts._watch_network(layer, clock)
    with clock.part("loss"):
        loss = layer(torch.ones(4, 3)).square().sum()
    assert [name for name, _ in clock.marks] == ["loss", "network", "loss", ""]
    clock.read()
    with clock.part("loss"):
        loss.backward()
    assert [name for name, _ in clock.marks] == ["loss", "network", ""]
