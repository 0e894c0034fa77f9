"""Checks of optimizers and learning-rate schedules."""

from __future__ import annotations

import math
import pickle
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.method import ParameterGroup
from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin, Schedule, ScheduleOptions
from sslcli.modules.roles import parameter_roles
from sslcli.optimizers.groups import split_by_role
from sslcli.training.state import load_optimizer_state, named_optimizer_state

from .common import changed, check_options, reported, require, require_finite, require_same, require_savable, snapshot

#: Keys of a group, beside torch's own, that must be there after building.
KEPT = ("names", "roles", "name", "excluded", "lr_multiplier", "constant_lr")


def check_optimizer(
    cls: type[OptimizerPlugin], options: Mapping[str, Any] | None = None, *, device: str = "cpu"
) -> None:
    """Checks groups, learning rate and weight decay that the loop sets, missing gradients, state, resuming, and zeros.

    Args:
        options: plain data; `lr` 0.01 and a weight decay of 0.1 if they are not given.
        device: where the parameters are.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed = check_options(cls, {"lr": 0.01, "weight_decay": 0.1, **(options or {})}, OptimizerOptions)
    trial = partial(_Trial, cls, parsed, device)
    _check_groups(trial())
    _check_learning_rate(trial())
    _check_weight_decay(trial(), trial())
    _check_missing_gradients(trial())
    _check_resuming(trial(), trial(seed=1))
    _check_zeros(trial())


class _Trial:
    """A small network with the optimizer on it, in groups as the loop builds them."""

    def __init__(self, cls: type[OptimizerPlugin], options: Any, device: str, seed: int = 0) -> None:
        self.label = cls.__name__
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(24, 5)).to(device)
        self.parameters = dict(self.module.named_parameters())
        self.groups = split_by_role(ParameterGroup(self.parameters), parameter_roles(self.module), options)
        self.excluded = [name for group in self.groups if group["excluded"] for name in group["names"]]
        self.optimizer = cls.build([dict(group) for group in self.groups], options)

    def state(self, names: Collection[str]) -> dict[str, Tensor]:
        """Copies the optimizer's state of the parameters with these names."""
        states = {name: self.optimizer.state.get(self.parameters[name], {}) for name in names}
        return {f"{n}.{key}": torch.as_tensor(value).clone() for n in names for key, value in states[n].items()}

    def step(self, seed: int, without: Collection[str] = (), scale: float = 1.0) -> dict[str, Tensor]:
        """Takes a step with random gradients for all parameters but those named; returns the parameters then."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.parameters.items():
            gradient = scale * torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.grad = None if name in without else gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return snapshot(self.module)


def _check_groups(trial: _Trial) -> None:
    label, groups = trial.label, getattr(trial.optimizer, "param_groups", [])
    require(isinstance(trial.optimizer, torch.optim.Optimizer), f"{label}.build must return a torch.optim.Optimizer")
    require(len(groups) == len(trial.groups), f"{label} has {len(groups)} groups, not the {len(trial.groups)} given")
    for group in groups:
        for key in KEPT:
            require(key in group, f"{label} drops {key!r} from its param_groups")
    before = snapshot(trial.module)
    still = sorted(before.keys() - set(changed(before, trial.step(0))))
    require(not still, f"{label}: a step with a gradient does not change {still[:1]}")


def _check_learning_rate(trial: _Trial) -> None:
    before = trial.step(0)
    for group in trial.optimizer.param_groups:
        group["lr"] = group["lr"].fill_(0.0) if isinstance(group["lr"], Tensor) else 0.0
    first, second = trial.step(1), trial.step(1)
    moved = changed(before, first)
    # If the learning rate is part of the momentum (SimCLR's LARS), earlier steps still have an effect, a fading one.
    lengths = [sum(float((b[n] - a[n]).norm()) for n in a) for a, b in ((before, first), (first, second))]
    good = not moved or lengths[1] < 0.99 * lengths[0]
    hint = "each step must read `lr` from its group"
    require(good, f"{trial.label}: with the groups' lr set to 0, {moved[:1]} moves; {hint}")


def _check_weight_decay(*trials: _Trial) -> None:
    ends = []
    for trial, weight_decay in zip(trials, (0.1, 0.4), strict=True):
        trial.step(0)  # Adam's first step has the same length for any gradient
        for group in trial.optimizer.param_groups:
            group["weight_decay"] = 0.0 if group["excluded"] else weight_decay
        ends.append(trial.step(1))
    what = "with another weight_decay in the groups the step is the same"
    require(changed(*ends), f"{trials[0].label}: {what}; each must read it there")


def _check_missing_gradients(trial: _Trial) -> None:
    trial.step(0)
    # One tensor of a group, a whole group, everything: decay or momentum alone would move a frozen parameter.
    for frozen in (["0.weight"], ["0.bias", "2.bias"], [*trial.parameters]):
        before, state = snapshot(trial.module), trial.state(frozen)
        with reported(f"{trial.label}: a step fails if {frozen} have no gradient"):
            after = trial.step(1, without=frozen)
        moved = [name for name in changed(before, after) if name in frozen]
        require(not moved, f"{trial.label}: a parameter without a gradient moves: {moved[:1]}")
        require_same(state, trial.state(frozen), f"{trial.label}: without a gradient the state {{}} changes")


def _check_resuming(trial: _Trial, fresh: _Trial) -> None:
    label = trial.label
    for step in range(3):
        trial.step(step)
    with reported(f"{label} keeps state for something that is not a parameter of the method", KeyError):
        flat = named_optimizer_state(trial.optimizer, trial.module)
    saved = {**flat, **require_savable(label, flat)}
    fresh.module.load_state_dict(snapshot(trial.module))
    load_optimizer_state(fresh.optimizer, fresh.module, saved)
    for step in range(3, 6):
        whole, resumed = trial.step(step), fresh.step(step)
    require_same(whole, resumed, f"{label}: resumed, {{}} differs; all state must be in optimizer.state[parameter]")


def _check_zeros(trial: _Trial) -> None:
    with torch.no_grad():
        trial.parameters["0.weight"].zero_()
    before = snapshot(trial.module)
    after = trial.step(0, scale=0.0)
    require_finite(after, f"{trial.label}: {{}} is not finite after a step with gradients of 0")
    moved = [name for name in changed(before, after) if name in trial.excluded]
    require(not moved, f"{trial.label}: {moved[:1]} has weight_decay 0 and a gradient of 0, but moves")
    require_finite(trial.step(0), f"{trial.label}: {{}}, a weight of 0, is not finite after a step")


def check_schedule(cls: type[Schedule], options: Mapping[str, Any] | None = None, *, base: float = 0.3) -> None:
    """Checks that a schedule is a pure function of the step, never negative and never above its base.

    Args:
        options: plain data, for a run of 20 steps in 4 epochs.
        base: the highest value.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label, total = check_options(cls, options, ScheduleOptions), cls.__name__, 20
    schedule = cls(parsed, base, total, 5)
    values = [schedule(step) for step in range(total)]
    for step, value in enumerate(values):
        require(isinstance(value, float), f"{label}({step}) is a {type(value).__name__}, not a float")
        require(math.isfinite(value) and value >= 0, f"{label}({step}) is {value}")
        require(value <= base * (1 + 1e-9), f"{label}({step}) is {value}, above its base {base}")
    require(max(values) > 0, f"{label} is 0 in every step")
    backwards = [schedule(step) for step in reversed(range(total))]
    require(backwards == values[::-1], f"{label}: a step's value depends on which steps were asked for before it")
    resumed: Schedule = pickle.loads(pickle.dumps(cls(parsed, base, total, 5)))
    require(resumed(total // 2) == values[total // 2], f"{label}: a new one has another value in the middle of a run")
    require(math.isfinite(cls(parsed, base, 4, 5)(3)), f"{label} has no value in a run shorter than an epoch")
