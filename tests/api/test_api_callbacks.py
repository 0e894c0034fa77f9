"""Callbacks that a Python program gives as objects: every hook of the contract reaches them."""

from __future__ import annotations

import inspect
from typing import Any

from api_helpers import TINY, tiny_run

import sslcli
from sslcli.api.callbacks import hold
from sslcli.contracts.callback import Callback


class Everything:
    """Records the calls; no subclass of anything."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append(name)

    def __dir__(self) -> list[str]:
        return ["on_start"]


def test_every_method_of_the_contract_is_passed_on_to_an_object() -> None:
    watcher = Everything()
    held = hold(watcher)()
    names = [name for name, _ in inspect.getmembers(Callback, inspect.isfunction) if not name.startswith("_")]
    assert {"on_record", "on_log", "state_dict", "load_state_dict"} <= set(names)
    for name in names:
        count = len(inspect.signature(getattr(Callback, name)).parameters) - 1
        found = getattr(held, name)(*[None] * count)
        # An object that returns nothing is one that has nothing to add or to save.
        assert found == ({} if name in ("on_record", "state_dict") else None)
    assert watcher.calls == names


def test_an_object_adds_values_to_the_log_lines_of_a_run(tmp_path) -> None:
    class Twice:
        def on_record(self, context):
            return {"twice_the_step": 2.0 * context.progress.step}

    run = tiny_run(tmp_path / "run", callbacks=[Twice(), TINY["callbacks"]], training={"max_steps": 2, "log_every": 1})
    assert [line["twice_the_step"] for line in run.metrics] == [2.0, 4.0]


def test_the_package_lists_its_functions_before_they_are_imported() -> None:
    assert {"train", "evaluate", "export", "load_backbone", "Run"} <= set(dir(sslcli))
