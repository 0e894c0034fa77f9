"""Checks of optimizers and learning-rate schedules."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin, Schedule, ScheduleOptions
from sslcli.training.state import load_optimizer_state, named_optimizer_state

from .common import changed, check_options, require, snapshot

#: Keys of a group, beside torch's own, that must be there after building.
KEPT = ("names", "roles", "name", "excluded", "lr_multiplier", "constant_lr")


def check_optimizer(
    cls: type[OptimizerPlugin], options: Mapping[str, Any] | None = None, *, device: str = "cpu"
) -> None:
    """Checks groups, learning rate and weight decay that the loop sets, missing gradients, state, resuming, and zeros.

    Args:
        cls: the class.
        options: plain data; `lr` 0.01 and a weight decay of 0.1 where they are not given.
        device: where the parameters are.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed = check_options(cls, {"lr": 0.01, "weight_decay": 0.1, **(options or {})}, OptimizerOptions)
    _check_groups(cls, parsed, device)
    _check_learning_rate(cls, parsed, device)
    _check_weight_decay(cls, parsed, device)
    _check_missing_gradients(cls, parsed, device)
    _check_resuming(cls, parsed, device)
    _check_zeros(cls, parsed, device)


def check_schedule(cls: type[Schedule], options: Mapping[str, Any] | None = None, *, base: float = 0.3) -> None:
    """Checks that a schedule is a pure function of the step, never negative and never above its base.

    Args:
        cls: the class.
        options: plain data, for a run of 20 steps in 4 epochs.
        base: the value at the top.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label, total, per_epoch = check_options(cls, options, ScheduleOptions), cls.__name__, 20, 5
    schedule = cls(parsed, base, total, per_epoch)
    values = [schedule(step) for step in range(total)]
    for step, value in enumerate(values):
        require(isinstance(value, float), f"{label}({step}) is a {type(value).__name__}, not a float")
        require(math.isfinite(value) and value >= 0, f"{label}({step}) is {value}")
        require(value <= base * (1 + 1e-9), f"{label}({step}) is {value}, above its base {base}")
    require(max(values) > 0, f"{label} is 0 all along")
    backwards = [schedule(step) for step in reversed(range(total))]
    require(backwards == values[::-1], f"{label}: a step's value depends on which steps were asked for before it")
    resumed: Schedule = pickle.loads(pickle.dumps(cls(parsed, base, total, per_epoch)))
    require(resumed(total // 2) == values[total // 2], f"{label}: a new one has another value in the middle of a run")
    require(math.isfinite(cls(parsed, base, 4, 5)(3)), f"{label} has no value in a run shorter than an epoch")


def _module(seed: int, device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(24, 5)).to(device)


def _groups(module: nn.Module, options: Any) -> list[dict[str, Any]]:
    """Groups as the loop builds them: what decays, and what is excluded."""
    groups: list[dict[str, Any]] = []
    for excluded in (False, True):
        named = {n: p for n, p in module.named_parameters() if (p.ndim < 2) == excluded}
        groups.append(
            {
                "params": list(named.values()),
                "names": list(named),
                "roles": ["bias" if excluded else "weight"] * len(named),
                "name": "main/excluded" if excluded else "main",
                "excluded": excluded,
                "lr_multiplier": 1.0,
                "constant_lr": False,
                "lr": options.lr,
                "weight_decay": 0.0 if excluded else options.weight_decay,
            }
        )
    return groups


def _build(
    cls: type[OptimizerPlugin], options: Any, device: str, seed: int = 0
) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = _module(seed, device)
    return module, cls.build(_groups(module, options), options)


def _step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check_groups(cls: type[OptimizerPlugin], options: Any, device: str) -> None:
    label = cls.__name__
    module, optimizer = _build(cls, options, device)
    require(isinstance(optimizer, torch.optim.Optimizer), f"{label}.build must return a torch.optim.Optimizer")
    require(len(optimizer.param_groups) == 2, f"{label} has {len(optimizer.param_groups)} groups of the 2 given")
    for group in optimizer.param_groups:
        for key in KEPT:
            require(key in group, f"{label} drops {key!r} from its param_groups")
    before = snapshot(module)
    _step(module, optimizer, 0)
    still = sorted(before.keys() - set(changed(before, snapshot(module))))
    require(not still, f"{label}: a step with a gradient leaves {still[:1]} as it was")


def _check_learning_rate(cls: type[OptimizerPlugin], options: Any, device: str) -> None:
    module, optimizer = _build(cls, options, device)
    _step(module, optimizer, 0)
    before = snapshot(module)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].fill_(0.0) if isinstance(group["lr"], Tensor) else 0.0
    # Where the learning rate is inside the momentum (SimCLR's LARS), what is in there already still runs out.
    _step(module, optimizer, 1)
    halfway = snapshot(module)
    _step(module, optimizer, 1)
    moved = changed(before, halfway)
    require(
        not moved or _shrinks(before, halfway, snapshot(module)),
        f"{cls.__name__}: with the groups' lr set to 0, {moved[:1]} moves; each step must read `lr` from its group",
    )


def _shrinks(first: Mapping[str, Tensor], second: Mapping[str, Tensor], third: Mapping[str, Tensor]) -> bool:
    """Tells whether the second of two steps is shorter than the first."""
    lengths = [sum(float((b[n] - a[n]).norm()) for n in a) for a, b in ((first, second), (second, third))]
    return lengths[1] < 0.99 * lengths[0]


def _check_weight_decay(cls: type[OptimizerPlugin], options: Any, device: str) -> None:
    ends = []
    for weight_decay in (0.1, 0.4):
        module, optimizer = _build(cls, options, device)
        _step(module, optimizer, 0)  # Adam's first step has one length whatever the gradient
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0 if group["excluded"] else weight_decay
        _step(module, optimizer, 1)
        ends.append(snapshot(module))
    require(
        bool(changed(*ends)),
        f"{cls.__name__}: with another weight_decay in the groups the step is the same; each must read it there",
    )


def _check_missing_gradients(cls: type[OptimizerPlugin], options: Any, device: str) -> None:
    label = cls.__name__
    module, optimizer = _build(cls, options, device)
    _step(module, optimizer, 0)
    # One tensor of a group, a whole group, everything: decay or momentum alone would move a frozen parameter.
    for frozen in ({"0.weight"}, {"0.bias", "2.bias"}, set(dict(module.named_parameters()))):
        before = snapshot(module)
        for name, parameter in module.named_parameters():
            parameter.grad = None if name in frozen else torch.ones_like(parameter)
        try:
            optimizer.step()
        except Exception as error:
            raise AssertionError(
                f"{label}: a step fails where {sorted(frozen)} have no gradient: {type(error).__name__}: {error}"
            ) from error
        moved = [name for name in changed(before, snapshot(module)) if name in frozen]
        require(not moved, f"{label}: a parameter without a gradient moves: {moved[:1]}")


def _check_resuming(cls: type[OptimizerPlugin], options: Any, device: str) -> None:
    label = cls.__name__
    module, optimizer = _build(cls, options, device)
    for step in range(3):
        _step(module, optimizer, step)
    try:
        flat = named_optimizer_state(optimizer, module)
    except KeyError as error:
        raise AssertionError(f"{label} keeps state for something that is no parameter of the method") from error
    for name, value in flat.items():
        require(
            isinstance(value, Tensor | int | float | str), f"{label}: the state {name!r} is a {type(value).__name__}"
        )
    saved = {name: value.clone() if isinstance(value, Tensor) else value for name, value in flat.items()}
    fresh, resumed = _build(cls, options, device, seed=1)
    fresh.load_state_dict({name: tensor.clone() for name, tensor in module.state_dict().items()})
    load_optimizer_state(resumed, fresh, saved)
    for step in range(3, 6):
        _step(module, optimizer, step)
        _step(fresh, resumed, step)
    lost = changed(snapshot(module), snapshot(fresh))
    require(not lost, f"{label}: resumed, {lost[:1]} ends elsewhere; all state must be in optimizer.state[parameter]")


def _check_zeros(cls: type[OptimizerPlugin], options: Any, device: str) -> None:
    label = cls.__name__
    module, optimizer = _build(cls, options, device)
    with torch.no_grad():
        next(iter(module.parameters())).zero_()
    before = snapshot(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = snapshot(module)
    bad = [name for name, tensor in after.items() if not bool(tensor.isfinite().all())]
    require(not bad, f"{label}: {bad[:1]} is not finite after a step with gradients of 0")
    excluded = {name for name, parameter in module.named_parameters() if parameter.ndim < 2}
    moved = [name for name in changed(before, after) if name in excluded]
    require(not moved, f"{label}: {moved[:1]} has weight_decay 0 and a gradient of 0, and moves")
    _step(module, optimizer, 0)
    bad = [name for name, tensor in snapshot(module).items() if not bool(tensor.isfinite().all())]
    require(not bad, f"{label}: {bad[:1]}, which was 0 everywhere, is not finite after a step")
