"""The worked example of CONTRIBUTING.md: its method and its test work as written."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from sslcli.contracts.method import Method

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return found[number]


def load_file(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_example_method_passes_its_example_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = tomllib.loads(block("toml")).values()
    module, _, cls = target.partition(":")
    for number, file in enumerate(["method.py", "test_method.py"]):  # as files, where pydantic finds the docstrings
        (tmp_path / file).write_text(block("python", number), encoding="utf-8")
    method = load_file(tmp_path / "method.py", module, monkeypatch)
    assert issubclass(getattr(method, cls), Method)
    test = load_file(tmp_path / "test_method.py", "example_test", monkeypatch)
    tests = [value for key, value in vars(test).items() if key.startswith("test_")]
    assert len(tests) == 2
    for run in tests:
        run()
