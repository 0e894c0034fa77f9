"""`ssl eval` and `ssl export` without a run: the newest below `runs/` that has something to load, and which it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_helpers import folder, run, trained  # noqa: F401  # fixtures
from run_helpers import done, refused

import sslcli

# ruff: noqa: F811

QUICK = ["k=[5]", "data.limit=40"]


@pytest.fixture
def runs(run: Path, folder: Path) -> Path:
    """`runs/` with `old` and `new`, an hour apart."""
    for hours, name in enumerate(("old", "new")):
        at = folder / "runs" / name
        shutil.copytree(run, at)
        for path in (at, *at.rglob("*")):
            os.utime(path, (1e9 + 3600 * hours,) * 2)
    return Path("runs")


def test_eval_takes_the_newest_run_and_says_which(runs: Path) -> None:
    out, err = done("eval", *QUICK)
    assert out.startswith("top1")
    assert err.splitlines()[0] == "using runs/new, the newest run"
    assert (runs / "new" / "eval" / "knn.json").exists()
    os.utime(runs / "old" / "metrics.jsonl", (2e9, 2e9))  # as one that is resumed
    assert "using runs/old, the newest run\n" in done("eval", "--method", "quality", "data.limit=40")[1]


@pytest.mark.parametrize("exporter", ["backbone", "features", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_export_takes_the_newest_run_with_any_exporter(runs: Path, exporter: str) -> None:
    _, err = done("export", exporter)
    assert err.splitlines()[0] == "using runs/new, the newest run"
    assert f"wrote runs/new/{exporter}." in err
    done("export", exporter, "--force", "--output", f"x{next(runs.glob(f'new/{exporter}.*')).suffix}")


def test_options_alone_are_no_run(runs: Path) -> None:
    assert "using runs/new" in done("export", "backbone", "format=sslcli")[1]
    assert "one run is exported at a time" in refused("export", "backbone", "runs/new", "timm")


def test_a_run_without_anything_to_load_is_passed_over(runs: Path) -> None:
    shutil.rmtree(runs / "new" / "checkpoints")
    os.rename(runs / "new" / "backbone.safetensors", "kept.safetensors")
    _, err = done("eval", *QUICK)
    assert err.splitlines()[0] == "using runs/old, the newest run with a checkpoint (newer, without: runs/new)"
    os.rename("kept.safetensors", runs / "new" / "backbone.safetensors")
    os.utime(runs / "new", (2e9, 2e9))
    os.utime(runs / "new" / "config.yaml", (2e9, 2e9))
    _, err = done("eval", *QUICK)  # on the run's own data, whose size is 16
    assert err.splitlines()[0] == "using runs/new/backbone.safetensors, of the newest run"
    assert "size" not in err


def test_a_damaged_run_is_named_and_passed_over(runs: Path) -> None:
    (checkpoint,) = (runs / "new" / "checkpoints").iterdir()
    content = bytearray(checkpoint.read_bytes())
    (runs / "new" / "backbone.safetensors").write_bytes(b"")
    for damaged in (content[:-8], content[: len(content) // 2], b""):
        checkpoint.write_bytes(damaged)
        os.utime(checkpoint, (1.9e9, 1.9e9))
        lines = done("eval", *QUICK)[1].splitlines()
        assert lines[0].startswith(f"warning: skipped: {checkpoint}: is damaged")
        assert lines[1] == "using runs/old, the newest run"


def test_without_a_run_one_line_says_where_it_looked(folder: Path) -> None:
    where = folder / "runs"
    line = refused("eval", "--method", "linear")
    assert line == (
        "ssl: nothing to evaluate: give a run with a checkpoint, or a file (`ssl eval RUN`); there is no run in "
        + str(where)
    )
    line = refused("export", "backbone")
    assert f"`ssl export backbone RUN`); there is no run in {where}" in line
    (where / "empty").mkdir(parents=True)
    assert f"none of the 1 runs in {where} has one" in refused("eval")


def test_python_takes_the_newest_run_too(runs: Path, messages: list[str]) -> None:
    assert 0 <= sslcli.evaluate(method="knn", overrides={"k": [5], "data.limit": 40}).metrics["top1"] <= 1
    assert json.loads((runs / "new" / "eval" / "knn.json").read_text())["method"] == "knn"
    assert sslcli.export().path == runs / "new" / "backbone.safetensors"
    assert messages.count("using runs/new, the newest run") == 2
