"""Every method with a momentum encoder: how it follows, and what does not reach it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from method_helpers import PER_EPOCH, STEPS, batch, make, train
from pydantic import ValidationError
from small_options import needs_vit, small
from torch import Tensor

from sslcli.contracts.method import Method, Progress
from sslcli.modules import MomentumEncoder
from sslcli.plugins import find, load

NAMES = [  # but for I-JEPA, whose copy follows along a line and sees one view of a ViT: test_ijepa.py
    plugin.name
    for plugin in find("methods")
    if plugin.package == "sslcli"
    and "final_momentum" in load("methods", plugin.name).Options.model_fields
    and not needs_vit(plugin.name)
]
every = pytest.mark.parametrize("name", NAMES)
#: Whose authors update the copy after the optimizer's step by that step's momentum, not before the next step's keys by
#: the next one's.
AT_THE_END = [name for name in NAMES if "momentum_step" in load("methods", name).Options.model_fields]


def build(name: str, **options: Any) -> Method:
    cls = load("methods", name)
    return make(cls, **{**small(cls.Options), **options})


def copy_of(method: Method) -> MomentumEncoder:
    (found,) = [module for module in method.modules() if isinstance(module, MomentumEncoder)]
    return found


def moved(method: Method, step: int) -> float:
    """How far the copy moves toward online weights that are larger by 1, after so many steps."""
    copied: Tensor = copy_of(method).backbone.linear.weight
    before = copied.clone()
    out = method(batch(method=method))
    with torch.no_grad():
        method.backbone.linear.weight.copy_(before + 1)
        method.after_step([out.carry], Progress(step, STEPS, PER_EPOCH))
    change = copied - before
    torch.testing.assert_close(change, torch.full_like(change, float(change.mean())), rtol=0, atol=1e-6)
    return float(change.mean())


@every
def test_the_copy_follows_by_the_papers_schedule(name: str) -> None:
    options = load("methods", name).Options.parse({})
    start, final = options.momentum, options.final_momentum
    middle = start if final is None else (start + final) / 2  # of a cosine over half of the run
    assert moved(build(name), 5 + (name in AT_THE_END)) == pytest.approx(1 - middle, abs=1e-6)


@every
def test_momentum_is_constant_or_ends_where_the_options_say(name: str) -> None:
    assert moved(build(name, momentum=0.9, final_momentum=0.9), 5) == pytest.approx(0.1, abs=1e-6)
    last = 10 + (name in AT_THE_END)
    assert moved(build(name, momentum=0.9, final_momentum=0.5), last) == pytest.approx(0.5, abs=1e-6)


@every
def test_the_copy_moves_in_every_step_unless_the_next_ones_momentum_is_1(name: str) -> None:
    method = build(name, momentum=0.9, final_momentum=1.0)
    for step in range(STEPS):
        before = [p.clone() for p in copy_of(method).parameters()]
        train(method, step, step + 1)
        same = [torch.equal(a, b) for a, b in zip(before, copy_of(method).parameters(), strict=True)]
        assert all(same) == (step == STEPS - 1 and name not in AT_THE_END), step  # m(10 of 10) is 1


@pytest.mark.parametrize("name", AT_THE_END)
def test_the_first_update_is_by_the_initial_momentum_or_on_request_by_the_second_steps(name: str) -> None:
    values = {"momentum": 0.9, "final_momentum": 0.5}
    second = 0.5 + 0.4 * (1 + math.cos(math.pi / STEPS)) / 2
    assert moved(build(name, **values), 1) == pytest.approx(0.1, abs=1e-6)
    assert moved(build(name, **values, momentum_step="next"), 1) == pytest.approx(1 - second, abs=1e-6)


@every
def test_an_initial_momentum_of_one_is_refused_since_the_copy_would_never_move(name: str) -> None:
    with pytest.raises(ValidationError, match="momentum"):
        build(name, momentum=1.0)


@every
def test_the_copy_gets_no_gradient_and_no_optimizer(name: str) -> None:
    method = build(name)
    train(method, 0, 1)
    copied = {id(p) for p in copy_of(method).parameters()}
    assert not any(p.requires_grad or p.grad is not None for p in copy_of(method).parameters())
    grouped = [p for group in method.parameter_groups() for p in group.parameters.values()]
    assert not copied & {id(p) for p in grouped}
    assert len(grouped) + len(copied) == len(list(method.parameters()))


@every
def test_the_copy_normalizes_with_its_own_batches_of_global_views(name: str) -> None:
    method = build(name)
    local = () if method.view_count else (2, 2)
    method(batch(4, 4, *local, method=method))
    own, online = copy_of(method).backbone.norm, method.backbone.norm
    assert own.num_batches_tracked.item() > 0
    assert not torch.equal(own.running_mean, torch.zeros(6))
    if local:
        assert own.num_batches_tracked.item() < online.num_batches_tracked.item()


@every
def test_the_schedule_named_momentum_is_what_the_copy_follows_by(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """m(t) after step t where the authors update at the end of a step, else m(t + 1)."""
    method = build(name, momentum=0.9, final_momentum=1.0)
    schedule, later = method.schedules()["momentum"], 0 if name in AT_THE_END else 1
    found: list[float] = []
    monkeypatch.setattr(MomentumEncoder, "follow", lambda self, *, value, **modules: found.append(value))
    for step in range(3):
        method.after_step([method(batch(method=method)).carry], Progress(step + 1, STEPS, PER_EPOCH))
    assert found == [schedule(step + later) for step in range(3)]
    assert len(set(found)) == 3
