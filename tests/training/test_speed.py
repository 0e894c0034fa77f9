"""`ssl bench` measures the steps of a training run, and its figures add up."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

import pytest
import torch
from PIL import Image

from sslcli.contracts.errors import SslError, UserError
from sslcli.phases import PHASES, Clock, clock_for
from sslcli.runs.directory import RunDirectory
from sslcli.training import memory, speed
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.memory import PeakMemory, held_bytes
from sslcli.training.setup import Session, build
from sslcli.training.speed import Measured, SpeedLoop, headline, measure, report


def loop_of(session: Session) -> SpeedLoop:
    return SpeedLoop(session, Context(session, RunDirectory(Path())), 0)


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """Overrides that train on images of several sizes, which workers must decode."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (20 + number, 24), (16 * number, 0, 0)).save(folder / f"{number}.png")
    return [f"data={{name: images, root: {folder}}}", "views.size=16"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.epochs=1"],
        ["training.accumulate=2"],
        pytest.param(["method=byol", "training.epochs=1"], marks=pytest.mark.slow),
    ],
)
def test_every_round_has_its_steps_and_phases(tiny, overrides, monkeypatch):
    ready: list[bool] = []
    step = Loop.step

    def counted(loop: Loop) -> None:
        ready.append(isinstance(loop.batches, itertools.repeat))
        step(loop)

    monkeypatch.setattr(Loop, "step", counted)
    _, found = measure(tiny(*overrides), steps=2, rounds=2)  # more steps than there are in an epoch
    assert ready.count(True) == 2 + 2 * 2
    assert ready.count(False) == 5 + 2 + 2 * 2 * 2
    assert [len(found.seconds[kind]) for kind in ("end_to_end", "ready")] == [len(found.phases)] * 2 == [2, 2]
    for phases in found.phases:
        assert tuple(phases) == PHASES
        assert all(seconds >= 0 for seconds in phases.values())
        assert all(phases[name] > 0 for name in ("data", "views", "forward", "backward", "update"))
    assert found.memory["peak_bytes"] > 0
    assert found.bad_step is None


def test_the_phases_add_up_to_the_time_of_the_steps(tiny, monkeypatch):
    loop, clock = loop_of(build(tiny())), Clock()
    monkeypatch.setattr(speed, "clock_for", lambda device: clock)
    phases = speed._phases(loop, loop.batches, 3)
    assert 3 * sum(phases.values()) == pytest.approx(clock._marks[-1][1] - clock._marks[0][1])


def test_every_part_of_a_step_is_marked_in_order(tiny):
    loop, clock = loop_of(build(tiny("training.accumulate=2"))), Clock()
    with clock.running():
        loop.step()
    micro_batch = ["views", "transfer", "views", "forward", "backward"]
    marked = [name for name, _ in clock._marks if name != "rest"]
    assert marked == ["data", *micro_batch, *micro_batch, "update", "update"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_neither_prepared_views_nor_the_clock_change_a_step(tiny, accumulate, monkeypatch):
    config, ended = tiny(f"training.accumulate={accumulate}", "schedule.warmup_epochs=0"), []
    for kind in ("plain", "ready", "clock"):
        session = build(config)
        loop = loop_of(session)
        first = next(session.source.batches(0))
        loop.batches = iter([loop.ready(first) if kind == "ready" else first])
        if kind == "ready":
            monkeypatch.setattr(session.views, "apply", None)  # must not be called again
        if kind == "clock":
            with Clock().running():
                loop.step()
        else:
            loop.step()
        ended.append(session.method.state_dict())
    begun = build(config).method.state_dict()
    assert not all(torch.equal(begun[name], tensor) for name, tensor in ended[0].items())
    for other in ended[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in ended[0].items())


def test_prepared_views_are_copies(tiny, monkeypatch):
    loop = loop_of(build(tiny()))
    first = next(loop.batches)
    made = loop.make_views(first[0])
    expected = [view.clone() for view in made]
    monkeypatch.setattr(Loop, "make_views", lambda loop, batch, step: made)
    (ready,) = loop.ready(first)
    for view in made:
        view.zero_()  # as a CUDA graph does when it is replayed
    assert all(torch.equal(one, other) for one, other in zip(loop.make_views(ready), expected, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_time_spent_waiting_for_workers_is_a_phase_and_they_end(tiny, photographs, workers):
    config = tiny(*photographs, f"training.workers={workers}")
    session, found = measure(config, steps=1, rounds=1)
    assert found.phases[0]["data"] > 0
    assert session.source._running is None
    assert found.memory["held_bytes"]["dataset"] == 0
    session, clock = build(config), Clock()
    assert session.source.ahead == 2 * workers  # a batch is one slice, and each worker is given two
    try:
        with clock.running():
            loop_of(session).step()
    finally:
        session.source.close()
    assert ("waiting" in {name for name, _ in clock._marks}) == bool(workers)


def test_batches_prepared_in_advance_are_used_up_before_the_clock_starts(tiny, monkeypatch):
    session = build(tiny())
    session.source.ahead = 3
    loop = loop_of(session)
    steps: list[str] = []
    monkeypatch.setattr(Loop, "step", lambda loop: steps.append("step"))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: steps.append("clock") or 0.0)
    speed._seconds(loop, loop.batches, 2)
    assert steps == ["step"] * 3 + ["clock"] + ["step"] * 2 + ["clock"]


def test_no_round_but_the_first_begins_that_would_end_too_late(tiny, monkeypatch):
    """By a clock on which a step takes a minute: a round of 4 steps of one kind and of the other, and 4 for phases."""
    now = [0.0]
    step = Loop.step

    def slow(loop: Loop) -> None:
        now[0] += 60
        step(loop)

    monkeypatch.setattr(Loop, "step", slow)
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    _, found = measure(tiny(), steps=4, rounds=3, minutes=9 + 12 + 12)  # 9 steps before the first round
    assert (len(found.phases), found.ended, found.signal) == (2, "--minutes", None)
    _, found = measure(tiny(), steps=4, rounds=3, minutes=0)
    assert (len(found.phases), len(found.seconds["ready"])) == (1, 1)
    _, found = measure(tiny(), steps=4, rounds=2, minutes=9 + 12 + 12)
    assert (len(found.phases), found.ended) == (2, None)


def test_nothing_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measure(tiny("callbacks.tensorboard={}", "output=here"), steps=1, rounds=1)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="bench: measures a single process; run it without torchrun"):
        measure(tiny(), steps=1, rounds=1)


def test_too_little_memory_is_one_line_and_the_source_is_closed(tiny, monkeypatch):
    def fail(loop: Loop) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    closed = []
    monkeypatch.setattr(Loop, "step", fail)
    monkeypatch.setattr("sslcli.data.source.ResidentSource.close", lambda source: closed.append(source))
    with pytest.raises(SslError, match=r"out of memory in a step: try a smaller training\.batch_size"):
        measure(tiny(), steps=1, rounds=1)
    assert len(closed) == 1


# --- the report


def test_the_report_has_every_figure_and_its_ratio_is_the_median_over_rounds(tiny):
    session = build(tiny())
    rounds = [{"data": 3.0, "rest": 3.0}, {"data": 1.0, "rest": 1.0}, {"data": 0.0, "rest": 3.0}]
    seconds = {"end_to_end": [2.0, 4.0, 3.0], "ready": [1.0, 3.0, 3.0]}
    found = report(session, Measured(seconds, rounds, {}, None), 1, ["ssl", "bench"])
    assert set(found) == {
        "time", "command", "sslcli", "python", "torch", "torchvision", "platform", "processor", "cores", "cpu_threads",
        "huge_pages", "gpu", "config", "plan", "steps", "rounds", "ended_by", "images_per_second", "ratio", "phases",
        "phases_clock", "memory", "first_step_with_bad_loss", "seconds_per_step",
    }  # fmt: skip
    assert found["config"]["training"]["compile"] == "none"
    assert found["rounds"] == 3
    assert found["images_per_second"]["end_to_end"] == {"median": 2.6667, "min": 2.0, "max": 4.0}
    assert found["ratio"] == {"median": 0.75, "min": 0.5, "max": 1.0}  # 2/3 is the ratio of the medians' speeds
    assert found["phases"]["rest"] == {"ms": 3000.0, "share": 1.0, "ms_min": 1000.0, "ms_max": 3000.0}
    assert headline(session).startswith("simclr, resnet18, shapes; batch of 8, views: 2 of 16 px; cpu, fp32, compiled:")
    # Of an even number of rounds the faster one in the middle, so that it is the time of an actual step.
    found = report(session, Measured(dict.fromkeys(seconds, [1.0] * 2), rounds[:2], {}, None), 1, [])
    assert found["phases"]["data"]["ms"] == 1000.0


# --- memory


def test_the_memory_of_a_session_is_counted_in_bytes(tiny):
    session = build(tiny("optimizer={name: adamw, lr: 0.001}"))
    loop_of(session).step()
    held = held_bytes(session)
    trained = [p for p in session.method.parameters() if p.requires_grad]
    assert held["dataset"] == 32 * 3 * 16 * 16
    assert held["parameters"] == sum(t.nbytes for t in session.method.state_dict().values())
    # Two moments, and each parameter's step.
    assert held["optimizer state"] == 4 * (2 * sum(p.numel() for p in trained) + len(trained))


@pytest.mark.skipif(not memory._RESET.exists(), reason="the system cannot reset its counter")
def test_the_peak_is_that_since_the_object_was_created():
    size = 200 * 2**20
    before = PeakMemory(torch.device("cpu"))
    assert before.kind == "resident set"
    begin = before.bytes()
    with mmap.mmap(-1, size) as pages:  # new ones, where a tensor could use what the process has freed
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1
    assert before.bytes() > begin + 0.9 * size
    assert PeakMemory(torch.device("cpu")).bytes() < begin + 0.5 * size


def test_without_a_reset_the_peak_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "nothing" / "here")
    peak = PeakMemory(torch.device("cpu"))
    assert peak.kind == "resident set since the process started"
    assert peak.bytes() > 50 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_phases_do_not_wait_for_the_device(tiny):
    session = build(tiny("training.device=cuda", "training.precision=bf16"))
    loop = loop_of(session)
    loop.step()  # what is created once may wait
    loop.step()
    clock = clock_for(session.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with clock.running():
            loop.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    spent = clock.seconds()
    assert all(seconds >= 0 for seconds in spent.values())
    assert spent["forward"] > 0
    peak = PeakMemory(session.device)
    loop.step()
    assert peak.kind == "allocated on the device"
    assert peak.bytes() > sum(held_bytes(session).values())
