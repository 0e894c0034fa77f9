"""`ssl bench` on the command line: what it prints where, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from typer.testing import CliRunner

from sslcli import plugins
from sslcli.cli.main import app


def ssl(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plugins.clear_cache()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_it_prints_every_figure_and_writes_what_it_is_asked_to(folder: Path) -> None:
    code, out, err = ssl("c.yaml", "training.batch_size=16", "--steps", "1", "--rounds", "2", "--output", "speed.json")
    assert code == 0, err
    rows = (
        "data", "transfer", "views", "forward", "backward", "optimizer and method update", "waiting", "rest", "step",
        "end to end", "the same on ready views", "ratio", "peak, ", "data set", "parameters", "optimizer state",
    )  # fmt: skip
    lines = [line.strip() for line in out.splitlines()]
    assert [row for row in rows if not any(line.startswith(row) for line in lines)] == []
    assert lines[0].startswith("simclr, resnet18, shapes; batch of 16,")
    assert "round 2 of 2: " in err
    assert "wrote speed.json" in err
    assert files(folder) == ["c.yaml", "speed.json"]
    written = json.loads((folder / "speed.json").read_text())
    assert written["config"]["training"]["batch_size"] == 16
    assert written["command"][0] == "ssl"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.yaml"], "gone.yaml: no such file"),
        (["c.yaml", "training.batch_size=many"], "training.batch_size: should be a valid integer"),
        (["c.yaml", "training.batch_size=64"], "training.batch_size: 64 is more than the 32 images"),
        (["c.yaml", "--output", "c.yaml"], "c.yaml: exists already; choose another --output"),
        (["c.yaml", "--output", "no/speed.json"], "no/speed.json: the folder no does not exist"),
        (["c.yaml", "--plugin", "gone.py"], "gone.py"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(folder: Path, arguments: list[str], said: str) -> None:
    before = (folder / "c.yaml").read_bytes()
    code, out, err = ssl(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("ssl: ")
    assert said in err
    assert files(folder) == ["c.yaml"]
    assert (folder / "c.yaml").read_bytes() == before


def test_no_round_at_all_is_wrong_usage(folder: Path) -> None:
    for option in ("--steps", "--rounds"):
        code, out, _ = ssl("c.yaml", option, "0")
        assert (code, out) == (2, "")


def test_a_loss_that_is_not_finite_is_told_beside_the_figures(folder: Path, odd_plugins: Path) -> None:
    code, out, err = ssl("c.yaml", "method={name: nan_method, bad_step: 2}", "--steps", "1", "--rounds", "1")
    assert code == 0, err
    assert "end to end" in out
    assert "the loss was not finite in step 2: a run would have ended there" in err
