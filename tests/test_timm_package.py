"""The package sslcli-timm: built, installed into a folder of its own, and its tests run there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_third_party_package import run, succeeded

PACKAGE = Path(__file__).parent.parent / "plugins" / "sslcli-timm"

pytestmark = pytest.mark.slow


def test_its_models_are_found_and_its_own_tests_pass(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    offline = ("--no-deps", "--no-index", "--quiet")
    succeeded(run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", *offline, "-w", tmp_path, PACKAGE))
    (built,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    succeeded(run(sys.executable, "-m", "pip", "install", *offline, "--target", site, built))
    listed = json.loads(succeeded(run(sys.executable, "-m", "sslcli", "list", "backbones", "--json", path=site)))
    assert {row["package"] for row in listed if row["name"] == "timm"} == {"sslcli-timm"}
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", PACKAGE / "pyproject.toml", PACKAGE / "tests")
    said = succeeded(run(sys.executable, *tests, path=site))
    assert " passed" in said
    assert "skipped" not in said.splitlines()[-1]
