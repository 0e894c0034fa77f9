"""The launcher passes a signal on, and waits for all processes to save."""

from __future__ import annotations

import signal

import pytest

from sslcli.training import launch as launching
from sslcli.training.launch import _wait


class Child:
    """A process that ends with `code` when it has a signal and has been looked at `looks` times since."""

    pid = 7

    def __init__(self, looks: int, code: int) -> None:
        self.looks, self.code = looks, code
        self.got: list[int] = []

    def poll(self) -> int | None:
        self.looks -= bool(self.got)
        return self.code if self.looks <= 0 else None

    def send_signal(self, number: int) -> None:
        if self.looks > 0:
            self.got.append(number)
            if len(self.got) == 2:  # nobody has asked for this one
                self.looks, self.code = 0, -number


@pytest.mark.parametrize("code", [143, -15], ids=["after saving", "before it could"])
def test_a_process_that_still_saves_is_waited_for(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    children = [Child(500, 143), Child(1, code)]
    assert received(monkeypatch, children, signal.SIGTERM) == (143, None)
    assert [child.got for child in children] == [[signal.SIGTERM], [signal.SIGTERM]]


def test_a_process_that_fails_meanwhile_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    children = [Child(500, 143), Child(1, 1)]
    received(monkeypatch, children, signal.SIGTERM)
    assert children[0].got == [signal.SIGTERM, signal.SIGTERM]


def received(monkeypatch: pytest.MonkeyPatch, children: list[Child], number: int) -> tuple[int, str | None]:
    """What the launcher makes of the children if it gets a signal at once."""

    class Received(launching.Interrupt):
        def __enter__(self) -> launching.Interrupt:
            self.number = number
            return self

    monkeypatch.setattr(launching, "Interrupt", Received)
    monkeypatch.setattr(launching, "_PATIENCE", (0.0, 0.0))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return _wait(children)  # type: ignore[arg-type]
