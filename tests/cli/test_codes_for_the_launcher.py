"""Exit codes: what a process tells its launcher is what a new start may not meet again, and nothing else."""

from __future__ import annotations

import pytest
import typer

from sslcli import orphans
from sslcli.cli.main import guarded
from sslcli.contracts.errors import SslError, UserError
from sslcli.data.watch import WorkerLost
from sslcli.orphans import AGAIN
from sslcli.training.checks import RunFailed


@pytest.mark.parametrize(
    ("error", "alone", "launched"),
    [
        (WorkerLost("a worker process died"), 1, AGAIN),
        (SslError("a plugin has failed"), 1, 1),
        (RunFailed("not finite"), 1, 1),
        (OSError("the disk is full"), 1, 1),
        (UserError("no such file"), 2, 2),
    ],
)
def test_only_what_may_not_come_again_has_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, error: Exception, alone: int, launched: int
) -> None:
    assert code_of(error) == alone
    monkeypatch.setattr(orphans, "_launched", True)
    assert code_of(error) == launched


def test_a_crash_keeps_its_traceback_and_may_be_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="CUDA error"):
        code_of(RuntimeError("CUDA error"))
    monkeypatch.setattr(orphans, "_launched", True)
    assert code_of(RuntimeError("CUDA error")) == AGAIN
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):")


def code_of(error: Exception) -> int:
    def command() -> int:
        raise error

    with pytest.raises(typer.Exit) as caught:
        guarded(command)()
    return caught.value.exit_code
