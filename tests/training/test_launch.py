"""What the launcher makes of the ends of its processes, and when it starts them again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from sslcli.contracts.errors import SslError
from sslcli.orphans import AGAIN
from sslcli.training import launch as launching
from sslcli.training.group import LOST
from sslcli.training.launch import _outcome, launch


@pytest.mark.parametrize(
    ("codes", "code", "said"),
    [
        ([0, 0], 0, None),
        ([2, 2], 2, None),
        ([LOST, -9], 1, r"^rank 1 died \(pid 11, killed by SIGKILL\): most likely from lack of memory"),
        ([LOST, 1], 1, None),  # which has said why
        ([1, AGAIN], AGAIN, None),  # the main process led, and its end is an error of the other one
        ([None, -11], 1, r"^rank 1 died \(pid 11, killed by SIGSEGV\)$"),
        ([LOST, 0], 1, r"^rank 1 died \(pid 11, ended by itself with exit code 0\)"),
        ([LOST, LOST], 1, "^the processes lost each other"),
        ([143, None], 143, None),
        ([-9], 1, r"^the training process died \(pid 10, killed by SIGKILL\)"),
    ],
)
def test_exit_codes_become_one_code_and_one_line(codes: list[int | None], code: int, said: str | None) -> None:
    found, problem = _outcome(codes, [10, 11])[0], _outcome(codes, [10, 11][: len(codes)])[1]
    assert found == code
    if said is None:
        assert problem is None
    else:
        with pytest.raises(SslError, match=said):
            raise SslError(problem)


class Starts:
    """Stands for processes: each start ends with the next outcome."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: tuple[int, str | None]) -> None:
        self.outcomes = list(outcomes)
        self.words: list[list[str]] = []
        monkeypatch.setattr(launching, "_started", self.started)
        monkeypatch.setattr(launching, "_wait", lambda children: self.outcomes.pop(0))

    @contextmanager
    def started(self, words: Sequence[str], processes: int) -> Iterator[list[object]]:
        self.words.append(list(words))
        yield []


def test_a_death_restarts_from_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = Starts(monkeypatch, (1, "rank 1 died"), (AGAIN, None), (0, None))
    steps = iter([None, 7])
    with caplog.at_level(logging.WARNING):
        assert launch(["train"], 1, "cpu", restarts=3, step=lambda: next(steps)) == 0
    assert starts.words == [["train"], ["train", "--resume"], ["train", "--resume"]]
    assert [record.message for record in caplog.records] == [
        "restart 1 of 3, from the start: rank 1 died",
        "restart 2 of 3, from step 7: a process failed, as said above",
    ]


def test_after_so_many_restarts_the_last_death_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, (1, "one"), (1, "two"), (0, None))
    with pytest.raises(SslError, match=r"^two$"):
        launch(["train"], 2, "cpu", restarts=1, step=lambda: 3)
    assert len(starts.words) == 2


def test_the_code_between_launcher_and_processes_is_not_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    Starts(monkeypatch, (AGAIN, None), (AGAIN, None))
    assert launch(["train"], 2, "cpu", restarts=1, step=lambda: 3) == 1


@pytest.mark.parametrize("code", [0, 1, 2, 129, 130, 143])
def test_success_explained_errors_and_interrupts_are_no_reason_to_restart(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Starts(monkeypatch, (code, None), (0, None))
    assert launch(["train"], 1, "cpu", restarts=5, step=lambda: 3) == code
    assert len(starts.words) == 1
