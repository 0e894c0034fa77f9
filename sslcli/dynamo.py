"""Postpones the import of torch's compiler: every optimizer asks for it, only compiled code needs it, and it takes
longer than importing torch itself."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


def is_imported() -> bool:
    """Returns whether the real module is there: without it, nothing is compiled."""
    return f"{NAME}.config" in sys.modules


def postpone() -> None:
    """Lets eager code go without `torch._dynamo`; whoever needs more of it gets the real module."""
    if NAME not in sys.modules:
        torch._dynamo = sys.modules[NAME] = _Postponed(NAME)


class _Postponed(ModuleType):
    """Has the two functions that eager code calls, where they have nothing to do."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.find_spec(name)
        self.given: list[Any] = []

    def graph_break(self, *args: Any, **kwargs: Any) -> None:
        """Ends a compiled graph; there is none."""

    def disable(self, *args: Any, **kwargs: Any) -> Any:
        """Returns a function that must not be compiled as it is, for torch's own decorator, which asks at each call."""
        if sys._getframe(1).f_globals.get("__name__") != "torch._compile":
            return self.__getattr__("disable")(*args, **kwargs)
        self.given.append(args[0])
        return args[0]

    def __getattr__(self, name: str) -> Any:
        """Imports the module for anything else; `__path__` is what imports of its parts ask for."""
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(NAME) is self:
            for fn in self.given:  # torch keeps there what `disable` returned
                vars(fn).pop("__dynamo_disable", None)
            del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), name)
