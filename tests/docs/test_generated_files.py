"""Generated files are up to date: the options page, the schema, the catalog, and the configs' first lines."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

from generate_helpers import generate  # noqa: F401  # a fixture

from sslcli.cli import catalog
from sslcli.plugins import GROUPS, find

ROOT = Path(__file__).parents[2]


def test_every_generated_file_is_up_to_date(generate: ModuleType) -> None:  # noqa: F811
    files = generate.files()
    stale = [path.name for path, text in files.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `python docs/generate.py`"
    named = {str(path.relative_to(ROOT)) for path in files}
    assert {"docs/config.md", "docs/methods.md", "examples/configs/config.schema.json"} <= named
    assert {path for path in files if path.suffix == ".yaml"} == {*(ROOT / "examples" / "configs").rglob("*.yaml")}


def test_the_options_page_has_every_section_and_every_option_of_every_plugin(generate: ModuleType) -> None:  # noqa: F811
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for section in (*catalog.read()["sections"], *generate.AFTER_TRAINING):
        assert f"\n## {section}\n" in page
    for group in GROUPS:
        for name, found in catalog.read()["plugins"][group].items():
            assert found["summary"].replace("|", "\\|") in page, name
            assert [row["name"] for row in found["options"] if f"\n| `{row['name']}` |" not in page] == []
    for section in ("training", "checkpoints"):
        options = catalog.read()["sections"][section]["options"]
        assert [row["name"] for row in options if f"\n| `{row['name']}` | " not in page] == []


def test_the_catalog_has_every_built_in_plugin() -> None:
    for group in GROUPS:
        ours = {plugin.name for plugin in find(group) if plugin.package == catalog.PACKAGE}
        assert {*catalog.read()["plugins"][group]} == ours


def test_compact_json_is_the_same_json(generate: ModuleType) -> None:  # noqa: F811
    data = {"a": {"b": {"c": {"d": {"e": {"f": ["\n      x", {"g": 1}]}}}}}}
    assert json.loads(generate.compact(data)) == data


def test_a_config_gets_the_line_that_names_the_schema(generate: ModuleType, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(generate, "CONFIGS", tmp_path)
    (tmp_path / "deep").mkdir()
    config = tmp_path / "deep" / "one.yaml"
    config.write_text("# Meaning.\nmethod: simclr\n")
    expected = "# yaml-language-server: $schema=../config.schema.json\n# Meaning.\nmethod: simclr\n"
    assert generate.with_schema(config) == expected
    config.write_text(expected.replace("../", "elsewhere/"))
    assert generate.with_schema(config) == expected
