"""An optimizer's parameter groups, and the learning rate and weight decay of each group at each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.method import Method, ParameterGroup, StepFunction
from sslcli.contracts.optimizer import OptimizerOptions, Role, Schedule
from sslcli.modules.cosine import half_cosine
from sslcli.modules.roles import parameter_roles


def build_groups(method: Method, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Returns torch parameter groups: each of the method's groups, split by whether a parameter is excluded.

    A group has `params`, `names` and `roles` (lists, one entry per parameter, in the same order), `name`, `excluded`,
    `lr_multiplier`, `constant_lr`, `lr` (`options.lr`, before any scaling) and `weight_decay` (0 if excluded). No group
    is empty.

    Raises:
        SslError: if the method's groups do not hold every trainable parameter exactly once.
        UserError: if a pattern of `exclude_names` matches no name.
    """
    trainable = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    roles = parameter_roles(method)
    label = type(method).__name__
    seen: set[str] = set()
    groups: list[dict[str, Any]] = []
    for group in method.parameter_groups():
        for name, parameter in group.parameters.items():
            if trainable.get(name) is not parameter:
                raise SslError(f"{label}.parameter_groups: {name!r} in {group.name!r} is not a trainable parameter")
            if name in seen:
                raise SslError(f"{label}.parameter_groups: {name!r} appears twice, the second time in {group.name!r}")
            seen.add(name)
        groups += split_by_role(group, roles, options)
    missing = [name for name in trainable if name not in seen]
    if missing:
        raise SslError(f"{label}.parameter_groups: {missing[0]!r} is left out ({len(missing)} such parameters)")
    check_patterns(seen, options)
    return groups


def split_by_role(group: ParameterGroup, roles: Mapping[str, Role], options: OptimizerOptions) -> list[dict[str, Any]]:
    """Returns one or two torch parameter groups, as described in `build_groups`: excluded ones in one of their own."""
    groups: list[dict[str, Any]] = []
    for excluded in (False, True):
        names = [name for name in group.parameters if is_excluded(name, roles[name], options) == excluded]
        if names:
            groups.append(
                {
                    "params": [group.parameters[name] for name in names],
                    "names": names,
                    "roles": [roles[name] for name in names],
                    "name": f"{group.name}/excluded" if excluded else group.name,
                    "excluded": excluded,
                    "lr_multiplier": group.lr_multiplier,
                    "constant_lr": group.constant_lr,
                    "lr": options.lr,
                    "weight_decay": 0.0 if excluded else options.weight_decay,
                }
            )
    return groups


def is_excluded(name: str, role: Role, options: OptimizerOptions) -> bool:
    """Returns whether a parameter gets no weight decay and no trust ratio, by its role or its name."""
    return role in options.exclude or any(fnmatchcase(name, pattern) for pattern in options.exclude_names)


def check_patterns(names: Iterable[str], options: OptimizerOptions) -> None:
    """Raises UserError if a pattern of `exclude_names` matches none of the names of all parameters."""
    names = sorted(names)
    for pattern in options.exclude_names:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:: max(1, len(names) // 4)][:4])
            raise UserError(f"optimizer.exclude_names: {pattern!r} matches no parameter; names are like {shown}")


def effective_lr(options: OptimizerOptions, batch_size: int) -> float:
    """Returns the base learning rate of the schedule: `options.lr`, scaled according to `options.scale_lr` with the
    images per optimizer step, over all processes and micro-batches."""
    if options.scale_lr == "batch/256":
        return options.lr * batch_size / 256
    if options.scale_lr == "sqrt":
        return options.lr * math.sqrt(batch_size)
    return options.lr


def weight_decay_schedule(options: OptimizerOptions, total_steps: int) -> StepFunction | None:
    """Returns the weight decay by step, or None if it never changes.

    DINO's: final + (weight_decay − final)·(1 + cos(π·t/T))/2, without a warm-up, so that `final_weight_decay` would be
    reached at t = T (`total_steps`), one step after the last.
    """
    start, final = options.weight_decay, options.final_weight_decay
    if final is None or final == start:
        return None
    return partial(half_cosine, start, final, steps=total_steps)


def set_rates(
    optimizer: torch.optim.Optimizer, step: int, schedule: Schedule, weight_decay: StepFunction | None
) -> None:
    """Sets every group's learning rate and weight decay for a step, before the optimizer takes it.

    The learning rate is the schedule's value, or its base with `constant_lr`, times the group's `lr_multiplier`.
    Excluded groups keep a weight decay of 0. A group may lack `constant_lr`, `lr_multiplier` and `excluded`.
    """
    value = schedule(step)
    decay = None if weight_decay is None else weight_decay(step)
    for group in optimizer.param_groups:
        lr = (schedule.base if group.get("constant_lr", False) else value) * group.get("lr_multiplier", 1.0)
        _set(group, "lr", lr)
        if decay is not None and not group.get("excluded", False):
            _set(group, "weight_decay", decay)


def _set(group: dict[str, Any], key: str, value: float) -> None:
    if isinstance(group[key], Tensor):
        group[key].fill_(value)  # a compiled or captured step reads this tensor
    else:
        group[key] = value
