"""Who is hung: a process that stopped, or that does nothing while others wait; not one that works alone."""

from __future__ import annotations

from sslcli.training.pulse import Beat, Stillness


def watch(*rounds: tuple[Beat, Beat]) -> tuple[int, str] | None:
    """Looks at rounds of beats, 5 s apart."""
    still, found = Stillness(12.0), None
    for beats in rounds:
        found = found or still.hung(beats, 5.0)
    return found


def beat(count: int, arrived: int, *, busy: bool = False) -> Beat:
    return Beat(count, arrived, busy, "plugin.py:3 (forward)", 77, "here")


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
