"""A callback that a Python program gives as an object, in the place of a class with options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sslcli.contracts.callback import Callback, Outcome, RunContext
from sslcli.contracts.errors import UserError
from sslcli.plugins import suggest

#: What a run calls; an object has at least one of them.
HOOKS = tuple(name for name, _ in inspect.getmembers(Callback, inspect.isfunction) if name.startswith("on_"))


class HeldCallback(Callback):
    """Passes every call on to an object that has some of the hooks, and perhaps a state."""

    target: ClassVar[Any]

    def on_start(self, context: RunContext) -> None:
        self._pass("on_start", context)

    def on_step(self, context: RunContext) -> None:
        self._pass("on_step", context)

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        self._pass("on_log", context, record)

    def on_epoch(self, context: RunContext) -> None:
        self._pass("on_epoch", context)

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        self._pass("on_end", context, outcome)

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        return self._pass("state_dict") or {}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        self._pass("load_state_dict", state)

    def _pass(self, name: str, *arguments: Any) -> Any:
        hook = getattr(self.target, name, None)
        return hook(*arguments) if hook is not None else None


def hold(target: Any) -> type[HeldCallback]:
    """Returns a callback class that stands for an object.

    Raises:
        UserError: it has none of the hooks, or one that nobody would call.
    """
    kind = type(target).__name__
    given = [name for name in dir(target) if name.startswith("on_") and callable(getattr(target, name, None))]
    for name in given:
        if name not in HOOKS:
            raise UserError(f"callbacks: {kind}.{name} is no hook{suggest(name, list(HOOKS), otherwise=True)}")
    if not given:
        raise UserError(f"callbacks: a {kind} has none of the hooks {', '.join(HOOKS)}")
    return type(kind, (HeldCallback,), {"target": target})
