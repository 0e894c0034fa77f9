"""docs/methods.md: its generated parts are up to date, every method is named, and what a section names exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from generate_helpers import generate  # noqa: F401  # a fixture

from sslcli.config.resolve import load_config
from sslcli.plugins import find

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
NAMES = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]


def test_generated_tables_are_up_to_date(generate: ModuleType) -> None:  # noqa: F811
    for page in (PAGE, PAGE.with_name("plugins.md")):
        text = page.read_text(encoding="utf-8")
        assert generate.generated(text) == text, "run `python docs/generate.py`"


def test_a_stale_table_is_found(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    stale = tmp_path / "methods.md"
    stale.write_text(PAGE.read_text(encoding="utf-8").replace("| `simclr` | 2", "| `simclr` | 3"), encoding="utf-8")
    monkeypatch.setattr(generate, "PAGE", stale)
    monkeypatch.setattr(generate, "GUIDE", stale)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert stale.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_named_and_a_section_has_configs_that_exist(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"`{name}`" in text or f"\n## {name}\n" in text
    for section in re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
        configs = re.findall(r"`([a-z0-9]+/[\w-]+\.yaml)`", section)
        assert configs
        assert [config for config in configs if not (ROOT / "examples" / "configs" / config).exists()] == []


def test_every_row_of_results_is_of_a_method_that_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    results = text[text.index("<!-- results -->") : text.index("<!-- end -->")]
    assert set(re.findall(r"^\| `(\w+)` \|", results, re.MULTILINE)) <= set(NAMES)


def differences() -> list[tuple[list[str], str]]:
    """The methods of each row of the table of differences, and what gives their authors' behavior."""
    section = PAGE.read_text(encoding="utf-8").split("## Where we differ from the authors\n")[1]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    assert {len(row) for row in rows} == {5}
    return [(re.findall(r"`(\w+)`", row[0]), row[4]) for row in rows]


def test_every_difference_is_of_a_method_and_its_option_is_one_of_the_methods_config() -> None:
    tested = 0
    for methods, option in differences():
        assert set(methods) <= set(NAMES)
        for override in re.findall(r"`([\w.]+=\S+)`", option):
            for method in methods or ["simclr"]:
                config = ROOT / "examples" / "configs" / "imagenet" / f"{method}.yaml"
                now = load_config(config, [override]).plain()
                keys = override.partition("=")[0].split(".")
                blurs = [op for view in now["views"] for op in view["operations"] if op["name"] == "blur"]
                found = [blur[keys[2]] for blur in blurs] if keys[0] == "views" else [now[keys[0]][keys[1]]]
                assert found
                given = override.partition("=")[2]
                same = [
                    value == float(given) if isinstance(value, float) else str(value).lower() == given
                    for value in found
                ]
                assert all(same), (method, override)
                tested += 1
    assert tested > 12


def test_the_table_of_sources_has_every_method() -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text.split("## Sources of the defaults\n")[1].split("\n## ")[0]
    named = [
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split(" | ")[0])
    ]
    assert sorted(named) == sorted(NAMES)
