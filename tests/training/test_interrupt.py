"""Which signals are the user's second, and which the same event again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from sslcli.training import interrupt as module
from sslcli.training.interrupt import Interrupt

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def default() -> Iterator[list[int]]:
    """The signals that have had their effect of before."""
    had: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: had.append(number)) for number in NUMBERS}
    yield had
    assert all(signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL) for number in NUMBERS)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_same_event_once_more_does_not_end_the_run(number: int, default: list[int]) -> None:
    with Interrupt() as interrupt:
        for each in (number, number, *NUMBERS):
            signal.raise_signal(each)
        assert interrupt.number == number
    assert default == []


def test_a_later_signal_ends_it_but_not_a_hangup(monkeypatch: pytest.MonkeyPatch, default: list[int]) -> None:
    monkeypatch.setattr(module, "SAME", 0.05)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGHUP)
        wait_until_a_second_signal_counts()
        signal.raise_signal(signal.SIGHUP)
        assert default == []
        signal.raise_signal(signal.SIGTERM)
    assert (interrupt.number, default) == (signal.SIGHUP, [signal.SIGTERM])


def wait_until_a_second_signal_counts() -> None:
    deadline = time.monotonic() + 10
    while signal.getsignal(signal.SIGTERM) is signal.SIG_IGN and time.monotonic() < deadline:
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
