"""Messages: one handler, on the main process, at the requested level; a program's own handlers come first."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import yaml
from conftest import TINY
from run_helpers import done

from sslcli.logs import lines_to, logger, on_console, shown

log = logging.getLogger("sslcli.anything")


def test_warnings_are_marked_and_the_level_is_restored():
    lines: list[str] = []
    with lines_to(lines.append):
        log.debug("one")
        log.info("two")
        log.warning("three")
    log.warning("four")
    assert lines == ["two", "warning: three"]
    assert logger.level == logging.NOTSET


def test_the_console_shows_nothing_if_the_logger_has_a_handler(capsys):
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
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "callbacks": {**TINY["callbacks"], "collapse": None}}))
    words = ["train", "c.yaml", "training.max_steps=2", "checkpoints.every_steps=1", "--output"]
    assert done(*words, "a", "--quiet")[1] == ""
    shown = done(*words, "b")[1]
    assert "run directory: b\n" in shown
    assert "wrote b/checkpoints" not in shown
    shown = done(*words, "c", "-v")[1]
    for line in ("run directory: c\n", "wrote c/checkpoints/step-000000001.safetensors in ", "cpu, fp32", "set up in "):
        assert line in shown


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert shown("runs/ä b") == "runs/ä b"
    assert shown("a\x1b[2J\n\u202eb\udcff") == "a\\x1b[2J\\n\\u202eb\\udcff"
    lines: list[str] = []
    with lines_to(lines.append):
        log.warning("[bold]100%% \x1b[31m%s", "d\nssl: forged")
    assert lines == ["warning: [bold]100% \\x1b[31md\\nssl: forged"]
