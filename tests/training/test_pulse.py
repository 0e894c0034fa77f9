"""Who is hung: a process that stopped, or that does nothing while others wait; not one that works alone."""

from __future__ import annotations

import json
import socket

import pytest
import torch.distributed as dist

from sslcli.training.pulse import Beat, Stillness, watched


def watch(*rounds: tuple[Beat, Beat]) -> tuple[int, str] | None:
    """Looks at rounds of beats, 5 s apart."""
    still, found = Stillness(12.0), None
    for beats in rounds:
        found = found or still.hung(beats, 5.0)
    return found


def beat(count: int, arrived: int, *, busy: bool = False, done: bool = False) -> Beat:
    return Beat(count, arrived, busy, "plugin.py:3 (forward)", 77, "here", done)


def test_a_process_that_does_nothing_while_others_wait_is_hung() -> None:
    rounds = [(beat(n, 10), beat(n, 9)) for n in range(1, 6)]
    assert watch(*rounds[:3]) is None
    found = watch(*rounds)
    assert found == (
        1,
        "rank 1 (pid 77 on here) has done nothing for 12 s while the others wait for it (training.stall_timeout); it "
        "was last seen at plugin.py:3 (forward)",
    )


def test_a_process_that_works_alone_is_not_hung_however_long_the_others_wait() -> None:
    assert watch(*[(beat(n, 9, busy=True), beat(n, 10)) for n in range(1, 50)]) is None


def test_processes_that_all_wait_or_go_on_are_not_hung() -> None:
    assert watch(*[(beat(n, 10), beat(n, 10)) for n in range(1, 50)]) is None
    assert watch(*[(beat(n, n + 1), beat(n, n)) for n in range(1, 50)]) is None


def test_a_process_that_stopped_is_hung_whatever_it_last_said() -> None:
    found = watch(*[(beat(1, 10, busy=True), beat(n, 10)) for n in range(1, 6)])
    assert found is not None
    assert found[1].startswith("rank 0 (pid 77 on here) has not answered for 12 s")


def test_idleness_is_counted_from_the_last_sign_of_work() -> None:
    idle = [(beat(n, 10), beat(n, 9, busy=n % 3 == 0)) for n in range(1, 50)]
    assert watch(*idle) is None


@pytest.mark.parametrize("arrived", [9, 10], ids=["before", "as far as the other"])
def test_a_process_that_is_done_is_not_hung_and_nobody_waits_for_it(arrived: int) -> None:
    done = beat(3, 10, done=True)
    assert watch(*[(beat(n, arrived), done) for n in range(1, 50)]) is None
    found = watch(*[(beat(7, arrived), done) for _ in range(50)])
    assert found is not None
    assert found[1].startswith("rank 0 (pid 77 on here) has not answered for 12 s")


def test_the_last_beat_says_done_unless_the_process_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo")
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        with pytest.raises(KeyError), watched(0.08):
            raise KeyError
        assert not store.check(["sslcli/pulse/0"]) or not json.loads(store.get("sslcli/pulse/0"))["done"]
        with watched(800.0):
            pass
        assert json.loads(store.get("sslcli/pulse/0"))["done"]
    finally:
        dist.destroy_process_group()
