"""Messages: one handler, on the main process, at the level that was asked for; a program's own handlers come first."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sslcli.cli.main import app
from sslcli.logs import lines_to, logger, on_console

log = logging.getLogger("sslcli.anything")

TRAIN = [
    "train", "c.yaml", "training.max_steps=2", "data.count=32", "data.size=16", "training.batch_size=8",
    "callbacks={knn: null, online_probe: null, tensorboard: null}", "training.device=cpu", "checkpoints.every_steps=1",
]  # fmt: skip


def test_warnings_are_marked_and_the_level_is_restored():
    lines: list[str] = []
    with lines_to(lines.append):
        log.debug("one")
        log.info("two")
        log.warning("three")
    log.warning("four")
    assert lines == ["two", "warning: three"]
    assert logger.level == logging.NOTSET


def test_the_console_is_left_to_a_handler_that_is_there_already(capsys):
    lines: list[str] = []
    with lines_to(lines.append), on_console():
        log.info("once")
    assert (lines, capsys.readouterr().err) == (["once"], "")


@pytest.mark.parametrize(("rank", "shown"), [("0", "line\n"), ("1", "")])
def test_only_the_main_process_shows_messages(rank, shown, capsys, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    with on_console():
        log.info("line")
    assert capsys.readouterr().err == shown


def test_a_program_without_logging_sees_no_message_of_the_library():
    code = "import logging, sslcli; logging.getLogger('sslcli.x').warning('unseen')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout + result.stderr == ""


def test_quiet_and_verbose_show_less_and_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "{method: simclr, data: shapes, backbone: {name: resnet18, width: 4, stem: small}}"
    )
    shown = {}
    for flag in ("--quiet", "", "-v"):
        output = ["--output", f"run{flag}"]
        result = CliRunner().invoke(app, [*TRAIN, *output, *([flag] if flag else [])])
        assert result.exit_code == 0, result.output
        shown[flag] = result.stderr
    assert shown["--quiet"] == ""
    assert "run directory: run\n" in shown[""]
    assert "saving a checkpoint" not in shown[""]
    assert "saving a checkpoint of step 1" in shown["-v"]
