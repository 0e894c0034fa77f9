"""How much memory a network takes, found without allocating it: too large ones are refused before they are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sslcli.memory import is_out_of_memory

M = TypeVar("M", bound=nn.Module)

#: Functions in place that are not about values.
_KEPT = ("requires_grad_", "detach_")
#: What makes random tensors, instead of which empty ones do.
_RANDOM = ("randn", "rand")


class _Unfilled(TorchFunctionMode):
    """Leaves out whatever gives tensors values: for the device `meta` torch would import its compiler for that, which
    takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _RANDOM:
            return torch.empty(*args, **{key: value for key, value in kwargs.items() if key != "generator"})
        if name.endswith("_") and not name.endswith("__") and name not in _KEPT:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def without_memory(build: Callable[[], M]) -> M | None:
    """Returns what `build` builds on torch's device `meta`, in a fraction of a second; None if that needs values.

    Raises:
        RuntimeError: a tensor would have more elements than torch can count (see `is_out_of_memory`).
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _Unfilled():
            return build()
    except Exception as error:  # plugins may need values, and fail in any way; the real one then says why
        if is_out_of_memory(error):
            raise
        return None


def state_bytes(module: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def training_bytes(module: nn.Module) -> int:
    """Returns the bytes that training takes at least: parameters and buffers, gradients, and one number of the
    optimizer for each trained one."""
    return state_bytes(module) + 2 * sum(p.nbytes for p in module.parameters() if p.requires_grad)
