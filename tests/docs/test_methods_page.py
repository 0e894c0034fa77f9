"""docs/methods.md: its generated parts are the code's, every method has a section, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sslcli.plugins import find

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
NAMES = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_option_tables_and_figures_are_those_of_the_code(generate: ModuleType) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert generate.generated(text) == text, "run `python docs/generate.py`"


def test_a_stale_table_is_found(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "methods.md"
    stale.write_text(PAGE.read_text(encoding="utf-8").replace("`temperature`", "`temperatur`"), encoding="utf-8")
    monkeypatch.setattr(generate, "PAGE", stale)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert stale.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_section_with_its_options_and_configs_that_exist(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    assert f"<!-- options: {name} -->\n| option |" in section[1]
    configs = re.findall(r"`([a-z0-9]+/[\w-]+\.yaml)`", section[1])
    assert f"cifar10/{name}.yaml" in configs
    assert [config for config in configs if not (ROOT / "examples" / "configs" / config).exists()] == []


def test_the_choosing_table_and_the_figures_name_every_method() -> None:
    text = PAGE.read_text(encoding="utf-8")
    choosing = text[: text.index("## The same small task")]
    figures = text[text.index("<!-- results -->") : text.index("<!-- end -->")]
    for name in NAMES:
        assert f"`{name}`" in choosing
        assert f"| `{name}` |" in figures
