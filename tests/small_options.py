"""Options that make any plugin small enough for a test, whatever they are called, and a learning rate that is given."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sslcli.contracts.optimizer import Schedule, ScheduleOptions
from sslcli.contracts.options import Options
from sslcli.plugins import find, load

#: Whole numbers above this become this: widths, heads, queues, prototypes, epochs.
LIMIT = 16
#: What takes time, or never happens in a short run, at that; widths that heads share at a multiple of most numbers.
LOWER = {"depth": 2, "dim": 48, "epochs": 2, "every_epochs": 1}
#: Options that make another method of it, and what they are set to: each is tested beside the plain one.
SWITCHES: dict[str, dict[str, Any]] = {
    "views_together": {"views_together": True},
    "tokens": {"tokens": 1.0, "queue_size": LIMIT},
}
#: The folder of the teacher's file, for this process and those that it starts.
TEACHER = "SSLCLI_TEST_TEACHER"


@functools.cache
def teacher() -> str:
    """The path of the backbone file of a narrow ResNet-18, for methods that need a teacher."""
    if TEACHER not in os.environ:
        from sslcli.runs.backbone_file import save_backbone
        from sslcli.testing.stand_ins import small_trained

        folder = os.environ[TEACHER] = tempfile.mkdtemp(prefix="sslcli-teacher-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        trained = small_trained()
        save_backbone(Path(folder) / "teacher.safetensors", trained.backbone, trained.card)
    return str(Path(os.environ[TEACHER]) / "teacher.safetensors")


#: What makes options that have no default.
REQUIRED = {"teacher": teacher}


def reduced(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in plain options that are too large for a test, lowered; of nested options only those that change."""
    lower: dict[str, Any] = {}
    for name, value in values.items():
        limit = LOWER.get(name, LIMIT)
        if isinstance(value, dict) and reduced(value):
            lower[name] = reduced(value)
        elif isinstance(value, int) and value > limit:
            lower[name] = limit
    return lower


def small(options: type[Options]) -> dict[str, Any]:
    """The defaults that are too large, lowered; and what methods cannot do without."""
    fields = {name: field for name, field in options.model_fields.items() if not field.is_required()}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    given = {n: make() for n, make in REQUIRED.items() if n in options.model_fields and n not in fields}
    return given | reduced({n: value.plain() if isinstance(value, Options) else value for n, value in defaults.items()})


def method_cases() -> list[str]:
    """Every built-in method, and once more with each of its `SWITCHES`: `byol`, `byol views_together`."""
    names = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
    fields = {name: load("methods", name).Options.model_fields for name in names}
    return [*names, *(f"{name} {switch}" for name in names for switch in SWITCHES if switch in fields[name])]


def method_case(case: str) -> tuple[str, dict[str, Any]]:
    """The method's name, and its small options with the switch on."""
    name, _, switch = case.partition(" ")
    return name, {**small(load("methods", name).Options), **SWITCHES.get(switch, {})}


def needs_vit(name: str) -> bool:
    """Whether a method works with vision transformers only: tests give it one (`SMALL_VIT`) for a ResNet."""
    return "ViT" in load("methods", name).needs


def quick(cases: Iterable[str], *kept: str) -> list[Any]:
    """Values of a test's parameter: `kept`, which differ in kind, in the quick suite, all others as slow tests."""
    cases = list(cases)
    assert set(kept) <= set(cases), set(kept) - set(cases)
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]


class Value(Schedule):
    """One learning rate for every step, and the base that groups with `constant_lr` get."""

    def __init__(self, value: float, base: float = 1.0) -> None:
        super().__init__(ScheduleOptions(), base, total_steps=1, steps_per_epoch=1)
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value
