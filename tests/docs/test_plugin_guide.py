"""The guide for plugin authors: its code runs, and the names in it exist."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from inspect import get_annotations
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_tars

from sslcli import plugins, testing
from sslcli.api.callbacks import HOOKS
from sslcli.contracts.callback import RunContext
from sslcli.plugins import GROUPS

HOME = Path(__file__).parent.parent.parent
GUIDE = (HOME / "docs" / "plugins.md").read_text()
EXAMPLE = HOME / "plugins" / "sslcli-example"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The example package on the path, as an installer would leave it; gives its entry points."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "sslcli_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, members in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in members.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.clear_cache()
    before = set(sys.modules)
    yield project["entry-points"]
    plugins.clear_cache()
    for name in set(sys.modules) - before:
        if name.startswith(("sslcli_example", "guide_block_")):
            del sys.modules[name]


def test_the_guides_plugins_keep_their_contracts(example: dict[str, Any], tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python")):  # as files, where pydantic finds the docstrings of options
        (tmp_path / f"guide_block_{number}.py").write_text(block)
        names |= vars(importlib.import_module(f"guide_block_{number}"))
    testing.check_operation(names["Darken"], {"strength": 0.3})
    testing.check_method(names["CenteredCosine"])
    testing.check_schedule(names["Straight"])
    write_tars(tmp_path / "tars", labels=False)
    testing.check_stream(names["TarFiles"], {"root": str(tmp_path / "tars")})
    testing.check_callback(names["WeightNorm"])
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


def test_the_example_has_a_plugin_of_every_group(example: dict[str, Any]) -> None:
    assert set(example) == {group.entry_points for group in GROUPS.values()}


def test_the_guides_entry_points_are_the_examples(example: dict[str, Any]) -> None:
    (block,) = blocks("toml")
    for group, members in tomllib.loads(block)["project"]["entry-points"].items():
        assert members.items() <= example[group].items()


def test_the_guides_table_has_every_group_and_every_check() -> None:
    for group in GROUPS.values():
        (row,) = re.findall(rf"^\| `{re.escape(group.entry_points)}` \|.*", GUIDE, re.MULTILINE)
        for name in ":".join(group.contracts).split(":"):  # modules and classes
            assert f"`{name}`" in row
    for check in testing.__all__:
        assert f"`{check}`" in GUIDE


def test_the_guides_hooks_are_those_of_the_contract() -> None:
    named = set(re.findall(r"^\| `(on_\w+)\(", GUIDE, re.MULTILINE))
    assert named == set(HOOKS)
    for name in (*get_annotations(RunContext), "encoder", "labeled", "normalize", "log", "tell", "stop"):
        assert re.search(rf"`{name}[`(]", GUIDE), name


def test_links_of_the_guide_and_of_the_example_lead_somewhere() -> None:
    for page in (HOME / "docs" / "plugins.md", EXAMPLE / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
