"""The phases of a step add up to its time, and without a clock they cost nothing."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from sslcli.phases import PHASES, REST, Clock, CUDAClock, clock_for, phase


class Ticks(Clock):
    """Every reading is one second after the previous one."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = count()

    def _now(self) -> float:
        return float(next(self.ticks))


def test_every_moment_belongs_to_the_innermost_phase_or_to_the_rest() -> None:
    clock = Ticks()
    with clock.running():  # 0
        with phase("views"), phase("transfer"):  # 1, 2; left at 3, 4
            pass
        with phase("data"):  # 5 to 6
            pass
        with phase("views"):  # 7 to 8
            pass
    # 9
    spent = {name: seconds for name, seconds in clock.seconds().items() if seconds}
    assert spent == {"views": 1 + 1 + 1, "transfer": 1, "data": 1, REST: 1 + 1 + 1 + 1}
    assert sum(spent.values()) == 9


def test_phases_are_in_the_order_of_a_step_even_if_they_took_no_time() -> None:
    clock = clock_for(torch.device("cpu"))
    assert type(clock) is Clock
    with clock.running():
        pass
    spent = clock.seconds()
    assert tuple(spent) == PHASES
    assert all(seconds >= 0 for seconds in spent.values())


def test_a_clock_records_nothing_outside_its_block() -> None:
    clock = Ticks()
    with pytest.raises(ZeroDivisionError), clock.running(), phase("data"):
        raise ZeroDivisionError
    before = clock.seconds()
    with phase("data"):
        pass
    assert clock.seconds() == before
    assert phase("data") is phase("views")  # the same object, which does nothing


def test_an_unknown_phase_is_an_error() -> None:
    clock = Ticks()
    with clock.running(), phase("vews"):
        pass
    with pytest.raises(KeyError, match="vews"):
        clock.seconds()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_measure_the_device_without_waiting_for_it() -> None:
    clock = clock_for(torch.device("cuda"))
    assert isinstance(clock, CUDAClock)
    matrix = torch.randn(4096, 4096, device="cuda")
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with clock.running():
            with phase("forward"):
                for _ in range(20):
                    matrix = matrix @ matrix
            with phase("transfer"), torch.cuda.stream(other):
                pass
            assert not clock._marks[-1][1].query()  # the device is still busy
    finally:
        torch.cuda.set_sync_debug_mode("default")
    spent = clock.seconds()
    assert all(seconds >= 0 for seconds in spent.values())
    assert spent["forward"] > 0.5 * sum(spent.values())
