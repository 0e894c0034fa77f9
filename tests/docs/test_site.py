"""The documentation site's sources: generated pages have every plugin, and every page is in the index."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import sslcli.losses
from sslcli.plugins import GROUPS, find

DOCS = Path(__file__).parents[2] / "docs"


def test_generated_pages_have_every_plugin_and_every_contract(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    (tmp_path / "stale.md").touch()
    generate.write_pages(tmp_path)
    assert not (tmp_path / "stale.md").exists()
    for group in GROUPS:
        page = (tmp_path / f"options-{group}.md").read_text(encoding="utf-8")
        named = {plugin.name for plugin in find(group) if plugin.package == "sslcli"}
        assert set(re.findall(r"^## (.+)$", page, re.MULTILINE)) == named
    methods = (tmp_path / "options-methods.md").read_text(encoding="utf-8")
    assert re.search(r"^\| `temperature` \| `float` \| `0\.5` \| \S", methods, re.MULTILINE)
    contracts = re.findall(r"automodule:: (\S+)", (tmp_path / "api-contracts.md").read_text(encoding="utf-8"))
    modules = {contract.partition(":")[0] for group in GROUPS.values() for contract in group.contracts}
    assert {f"sslcli.contracts.{module}" for module in modules} <= {*contracts}
    assert sslcli.losses.__all__  # what the page of the losses shows


def test_the_index_has_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {
        entry for toctree in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for entry in toctree.split()
    }
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} <= listed
    assert {f"<generated/options-{group}>" for group in GROUPS} <= listed
