"""Fixtures for tests of commands: a finished run, and a folder to work in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from run_helpers import done

from sslcli import plugins

#: A run of 3 steps.
CONFIG = yaml.safe_dump(
    {
        **TINY,
        "data": {"name": "shapes", "count": 48, "size": 16},
        "schedule": "constant",
        "training": {**TINY["training"], "epochs": 1, "batch_size": 16},
    }
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a config `c.yaml` in it."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plugins.clear_cache()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A finished run, and what was printed on stdout and stderr."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "c.yaml").write_text(CONFIG)
    return (folder / "run", *done("train", folder / "c.yaml", "--output", folder / "run"))


@pytest.fixture
def run(trained: tuple[Path, str, str], folder: Path) -> Path:
    """A copy of the finished run, named `run`, that a test may change."""
    shutil.copytree(trained[0], folder / "run")
    return Path("run")


def left_behind(folder: Path) -> set[str]:
    """Everything in the working directory besides the config."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"c.yaml"}
