"""Whether state that was stored for an optimizer is such as it keeps: names, shapes, data types."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Optimizers that are known to keep nothing but what they have after a first step.
_OURS = ("torch.", "sslcli.")


def check_stored(optimizer: torch.optim.Optimizer, states: Mapping[str, tuple[Tensor, Mapping[str, Any]]]) -> None:
    """Compares state with what one step of the optimizer makes of zeros, in tensors of the same shapes.

    Args:
        optimizer: not changed.
        states: by the name of a parameter: itself, and its stored state; empty if it has had no gradient.

    Raises:
        ValueError: naming the first value that the optimizer does not keep so.
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    layouts: dict[Any, dict[str, Any] | None] = {}
    kept: list[str] = []
    for name, (parameter, state) in states.items():
        if not state and optimizer.state.get(parameter) and any(other for _, other in states.values()):
            raise ValueError(f"has no state of {name!r}, for which the optimizer keeps some from the start")
        group = groups[id(parameter)]
        key = (id(group), parameter.shape, parameter.dtype)
        if key not in layouts:
            layouts[key] = _after_a_step(optimizer, group, parameter)
        layout = layouts[key]
        if layout:
            kept = kept or list(layout)
            if state:
                _compare(name, layout, dict(flat(state)), all_known=type(optimizer).__module__.startswith(_OURS))
    if kept and not any(state for _, state in states.values()):
        raise ValueError(f"has no state of the optimizer, which keeps {' and '.join(map(repr, kept))} for each weight")


def flat(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested state, with their names joined by dots."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _after_a_step(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """What the optimizer keeps for a weight; None if that cannot be found out."""
    weight = nn.Parameter(torch.zeros_like(parameter))
    weight.grad = torch.zeros_like(weight)
    trial = object.__new__(type(optimizer))
    trial.__dict__.update(optimizer.__dict__)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**group, "params": [weight]}]
    try:
        trial.step()
    except Exception:  # an optimizer that needs more than this: it says itself what it cannot read
        return None
    return dict(flat(trial.state[weight]))


def _compare(name: str, layout: Mapping[str, Any], stored: Mapping[str, Any], *, all_known: bool) -> None:
    for key, own in layout.items():
        if key not in stored:
            raise ValueError(f"has no {key!r} of {name!r}, which the optimizer keeps")
        value = stored[key]
        if _shape(value) != _shape(own):
            raise ValueError(f"has {key!r} of {name!r} in the shape {_shape(value)}; the optimizer keeps {_shape(own)}")
        if not _shape(own):
            if isinstance(value, Tensor | int | float) and not (math.isfinite(float(value)) and float(value) >= 0):
                raise ValueError(f"has {float(value)} as {key!r} of {name!r}")
        elif value.dtype != own.dtype:
            raise ValueError(f"has {key!r} of {name!r} as {value.dtype}; the optimizer keeps {own.dtype}")
    unknown = [key for key in stored if key not in layout and stored[key] is not None]
    if unknown and all_known:
        raise ValueError(f"has {unknown[0]!r} of {name!r}, which the optimizer does not keep")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
