"""Mistakes in a new method: one line says what is wrong, and the next start is not refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from typer.testing import CliRunner

from sslcli import plugins
from sslcli.cli.main import app
from sslcli.runs.directory import RunDirectory
from sslcli.runs.metrics import read_metrics

METHOD = """
import torch
from sslcli.contracts.method import Method, Step

class Mine(Method):
    @classmethod
    def recipe(cls, options, image_size, spec):
        return {{"preset": "simclr"}}

    def forward(self, batch):
        loss = self.backbone(batch.views[0].image).pooled.float().square().mean()
        {body}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_registered", [])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "method": {"name": "mine"}}))
    return tmp_path


def start(folder: Path, body: str, *more: str) -> tuple[int, str, BaseException | None]:
    """Trains with a method whose `forward` ends so; returns the exit code, what was printed, and what was raised."""
    plugins.clear_cache()  # each call stands for a process of its own
    (folder / "mine.py").write_text(METHOD.format(body=body))
    done = CliRunner().invoke(app, ["train", "c.yaml", "--plugin", "mine.py", "--output", "run", *more])
    return done.exit_code, done.stderr, done.exception


@pytest.mark.parametrize(
    ("body", "kind"), [("return loss", "Tensor"), ("return {'loss': loss}", "dict"), ("pass", "NoneType")]
)
def test_a_forward_that_returns_no_step_is_one_line(folder: Path, body: str, kind: str) -> None:
    code, err, raised = start(folder, body)
    assert (code, type(raised)) == (2, SystemExit)
    assert err.splitlines()[-1] == (
        f"ssl: method 'mine': Mine.forward returned {kind}, not Step; return sslcli.contracts.method.Step(loss)"
    )
    assert "Traceback" not in err


@pytest.mark.parametrize("body", ["return loss", "raise ZeroDivisionError"])
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["plain", "resume"])
def test_the_same_command_works_once_the_plugin_is_fixed(folder: Path, body: str, resume: tuple[str, ...]) -> None:
    assert start(folder, body, *resume)[0] != 0
    code, err, _ = start(folder, "return Step(loss)", *resume)
    assert code == 0, err
    assert [line["step"] for line in read_metrics(folder / "run" / "metrics.jsonl")] == [2, 4, 6, 8, 10, 12]
    (kept,) = (folder / "run" / "plugins").iterdir()
    assert "return Step(loss)" in kept.read_text()


@pytest.mark.parametrize("kept", ["metrics.jsonl", "backbone.safetensors", "checkpoints/step-000000001.safetensors"])
def test_a_run_that_has_anything_to_lose_is_not_taken_over(folder: Path, kept: str) -> None:
    assert start(folder, "return loss")[0] == 2
    (folder / "run" / kept).write_text('{"step": 1}\n')
    code, err, _ = start(folder, "return Step(loss)")
    assert code == 2
    assert "already contains a run; resume it with --resume" in err
    assert (folder / "run" / kept).read_text() == '{"step": 1}\n'


def test_a_run_in_its_first_step_is_not_taken_over_by_another_process(folder: Path) -> None:
    first = RunDirectory(folder / "run")
    first.create({"seed": 0}, [], resumed=False)
    before = {path: os.stat(path).st_mtime_ns for path in (folder / "run").rglob("*") if path.name != ".lock"}
    code, err, _ = start(folder, "return Step(loss)")
    first.close()
    assert code == 2
    assert "another process is training this run" in err
    assert {path: os.stat(path).st_mtime_ns for path in before} == before
