"""Which processes of a group show an error, and what is said of one that is lost."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from conftest import ConfigMaker

from sslcli import orphans
from sslcli.cli.console import report
from sslcli.cli.main import guarded
from sslcli.contracts.errors import SslError, UserError
from sslcli.distributed import together
from sslcli.training.checks import RunFailed
from sslcli.training.group import LOST, LostGroup, joined
from sslcli.training.train import train


@pytest.fixture
def second_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process takes itself for the second one of its machine, in a group in which it is the only one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "RANK": "0",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sslcli.training.group.described", lambda: True)
    monkeypatch.setattr("sslcli.distributed.is_distributed", lambda: True)  # a group of one is none otherwise
    monkeypatch.setattr(orphans, "_watched", True)


def fail(error: BaseException) -> Callable[[], None]:
    def failing() -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (fail(SslError("a worker died")), "ssl: a worker died\n"),
        (fail(UserError("no such file here")), "ssl: no such file here\n"),
        (lambda: together(fail(SslError("all have it"))), ""),
        (fail(RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer")), ""),
    ],
    ids=["alone", "alone in usage", "shared", "lost"],
)
def test_a_process_shows_what_it_alone_has(
    second_of_a_machine: None, capsys: pytest.CaptureFixture[str], work: Callable[[], None], said: str
) -> None:
    def command() -> int:
        with joined("cpu", None):
            work()
        return 0

    with pytest.raises(typer.Exit):
        guarded(command)()
    assert capsys.readouterr().err == said


def test_what_was_wrong_before_there_was_a_group_is_shown_by_one(
    second_of_a_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        guarded(fail(UserError("epochs: unknown")))()  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_a_lost_group_leaves_its_line_to_the_launcher_but_has_a_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report(LostGroup("connection closed"))
    text = "the other processes cannot be reached, perhaps since one of them failed: connection closed"
    assert capsys.readouterr().err == f"ssl: {text}\n"
    monkeypatch.setattr(orphans, "_launched", True)
    error = LostGroup("connection closed")
    report(error)
    assert (capsys.readouterr().err, str(error), error.exit_code) == ("", text, LOST)


def test_no_line_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    report(SslError(""))
    assert capsys.readouterr().err == ""


def test_the_run_records_that_the_group_was_lost(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslcli.training.train.Loop.step", lambda self: fail(RuntimeError("gloo: closed by peer"))())
    with pytest.raises(LostGroup):
        train(tiny(), tmp_path / "run")
    end = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"][-1]["end"]
    assert end["error"].startswith("the other processes cannot be reached, ")


def test_a_run_that_has_diverged_is_an_error_of_all(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslcli.training.train.Loop.step", lambda self: fail(RunFailed("not finite"))())
    with pytest.raises(RunFailed) as caught:
        train(tiny(), tmp_path / "run")
    assert caught.value.shared
