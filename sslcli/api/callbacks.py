"""A callback that a Python program gives as an object instead of a class with options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from sslcli.contracts.callback import Callback
from sslcli.contracts.errors import UserError
from sslcli.plugins import suggest

#: Everything that a run calls, and of it the hooks: an object has at least one of those.
_METHODS = {n: f for n, f in inspect.getmembers(Callback, inspect.isfunction) if not n.startswith("_")}
HOOKS = tuple(name for name in _METHODS if name.startswith("on_"))


def hold(target: Any) -> type[Callback]:
    """Returns a callback class that passes every call on to an object.

    Raises:
        UserError: the object has none of the hooks, or one that a run never calls.
    """
    kind = type(target).__name__
    given = [name for name in dir(target) if name.startswith("on_") and callable(getattr(target, name, None))]
    for name in given:
        if name not in HOOKS:
            raise UserError(f"callbacks: {kind}.{name} is not a hook{suggest(name, list(HOOKS), otherwise=True)}")
    if not given:
        raise UserError(f"callbacks: a {kind} has none of the hooks {', '.join(HOOKS)}")
    return type(kind, (Callback,), {name: _passed_on(target, name) for name in _METHODS})


def _passed_on(target: Any, name: str) -> Callable[..., Any]:
    """The object's method of that name; the contract's own where the object has none, or where it returns None."""

    def call(self: Callback, *arguments: Any) -> Any:
        method = getattr(target, name, None)
        found = None if method is None else method(*arguments)
        return _METHODS[name](self, *arguments) if found is None else found

    return call
