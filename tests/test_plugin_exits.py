"""A plugin that ends the program has failed; Ctrl-C has not."""

from __future__ import annotations

import os
import signal

import pytest

from sslcli import plugin_exits
from sslcli.contracts.errors import SslError
from sslcli.plugin_exits import named_exits


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(0), r"sys\.exit\(0\)"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
    ],
)
def test_an_exit_is_an_error_that_says_where(error: BaseException, said: str) -> None:
    expected = rf"^{__file__}:\d+ \(plugin\) wanted to end the program, by {said}: a plugin must raise"

    def plugin() -> None:
        raise error

    with pytest.raises(SslError, match=expected), named_exits(), named_exits():
        plugin()


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), named_exits():
        raise ZeroDivisionError


def test_ctrl_c_stays_what_it_is_and_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), named_exits(), named_exits():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_os_exit_says_where_and_never_ends_with_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class EndedError(Exception):
        pass

    def end(status: int) -> None:
        raise EndedError(status)

    monkeypatch.setattr(plugin_exits, "end_now", end)
    before = os._exit
    with named_exits():
        with named_exits(), pytest.raises(EndedError, match=r"^1$"):
            os._exit(0)
        with pytest.raises(EndedError, match=r"^3$"):
            os._exit(3)
    assert os._exit is before
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("ended the program, by ")[2].partition(":")[0] for line in lines] == [
        "os._exit(0)", "os._exit(3)",
    ]  # fmt: skip
    assert all(line.startswith(f"ssl: {__file__}:") for line in lines)


def test_a_forked_child_ends_as_it_wants() -> None:
    with named_exits():
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_blocks_of_two_threads_may_overlap() -> None:
    before, (first, second) = os._exit, (named_exits(), named_exits())
    for block in (first, second):
        block.__enter__()
    for block in (first, second):
        block.__exit__(None, None, None)
    assert os._exit is before
