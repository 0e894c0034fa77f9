"""Whatever number an option of a run is set to, it trains or is refused in one line: there is never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from run_helpers import method_config, ssl

from sslcli.config import schema
from sslcli.contracts.errors import SslError
from sslcli.plugins import find, load, load_found
from sslcli.training.setup import build
from sslcli.training.trial import check_micro_batch

VALUES = ("0", "-1", "1", "1000000000", "1000000000000000000", "18446744073709551616", "1e308", ".nan", ".inf", "-.inf")
SECTIONS = {"training": schema.TrainingOptions, "checkpoints": schema.CheckpointOptions}
GROUPS = {"methods": "method", "backbones": "backbone", "optimizers": "optimizer", "schedules": "schedule"}


def numbers(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The keys of all options that can be a number."""
    for name, field in model.model_fields.items():
        members = (field.annotation, *getattr(field.annotation, "__args__", ()))
        key = f"{prefix}.{name}"
        for member in members:
            if isinstance(member, type) and issubclass(member, BaseModel):
                yield from numbers(member, key)
        if any(word in str(field.annotation) for word in ("int", "float")):
            yield key


def cases() -> Iterator[tuple[str, list[str], list[str]]]:
    """What has options, the overrides that choose it, and the keys of its numbers."""
    for section, model in SECTIONS.items():
        yield section, [], list(numbers(model, section))
    yield "seed", [], ["seed"]
    yield "views", [], ["views.size", "views.count", "views.strength", "views.crop_scale", "views.flip"]
    for group, section in GROUPS.items():
        for plugin in find(group):
            if plugin.package == "sslcli" and hasattr(cls := load_found(plugin), "Options"):
                chosen = [] if group == "methods" else [f"{section}={{name: {plugin.name}{_needed(group)}}}"]
                yield f"{section} {plugin.name}", chosen, list(numbers(cls.Options, section))
    for plugin in find("callbacks"):
        if plugin.package == "sslcli":
            yield f"callback {plugin.name}", [], list(numbers(load_found(plugin).Options, f"callbacks.{plugin.name}"))
    yield "data shapes", [], list(numbers(load("datasets", "shapes").Options, "data"))


def _needed(group: str) -> str:
    return ", lr: 0.1" if group == "optimizers" else ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("what", "chosen", "keys"), [pytest.param(*case, id=case[0]) for case in cases()])
def test_every_number_trains_or_is_refused(what: str, chosen: list[str], keys: list[str], monkeypatch: Any) -> None:
    for module in ("network", "prepare"):
        monkeypatch.setattr(f"sslcli.training.{module}.free_memory", lambda device: 2**30, raising=False)
    method = what.removeprefix("method ") if what.startswith("method ") else "simclr"
    failures = []
    for key in keys:
        for value in VALUES:
            try:
                config = method_config(method, *chosen, f"{key}={value}")
                session = build(config, compiled=False)
                check_micro_batch(session)
            except SslError as error:
                if "\n" in str(error) and "ConfigError" not in type(error).__name__:
                    failures.append(f"{key}={value}: {error}")
            except Exception as error:
                failures.append(f"{key}={value}: {type(error).__name__}: {str(error)[:200]}")
    assert failures == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("backbone.width=1000000", "parameters take"),
        ("backbone.width=1000000000000", "more numbers than can be counted"),
        ("method.projector.hidden_dim=1000000000000000000", "more numbers than can be counted"),
        ("views.size=100000", "less than or equal to 16384"),
        ("views.count=10000", "less than or equal to 1000"),
        ("training.workers=100000", "less than or equal to 1024"),
        ("training.epochs=1000000000000000000", "less than or equal to 1000000000"),
        ("seed=18446744073709551616", "should be a whole number from 0"),
        ("optimizer.lr=.inf", "finite number"),
        ("checkpoints.every_steps=36893488147419103232", "should be a number of 64 bits"),
    ],
)
def test_what_is_beyond_all_measure_is_refused_in_a_line(tmp_path, override, said):
    run = ["method=simclr", "data={name: shapes, count: 32, size: 16}", "training.batch_size=8", "training.device=cpu"]
    code, out, err = ssl("train", *run, override, "--output", tmp_path / "run")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) <= 2
    assert not (tmp_path / "run").exists()
