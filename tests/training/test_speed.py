"""What `ssl bench` times are the steps of a training, and its figures add up."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image

from sslcli.contracts.errors import SslError, UserError
from sslcli.phases import PHASES, HostClock
from sslcli.runs.directory import RunDirectory
from sslcli.training import bench as bench_module
from sslcli.training import memory
from sslcli.training.speed import BenchLoop, Measured, Spread, bench
from sslcli.training.bench_report import as_json, headline
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.memory import PeakMemory, held_bytes
from sslcli.training.setup import Session, build


def loop_of(session: Session) -> BenchLoop:
    return BenchLoop(session, Context(session, RunDirectory(Path()), print), 0)


def photographs(folder: Path) -> list[str]:
    """Images of several sizes, which workers must decode; returns the overrides that train on them."""
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (20 + number, 24), (16 * number, 0, 0)).save(folder / f"{number}.png")
    return [f"data={{name: images, root: {folder}}}", "views.size=16"]


def measured(phases: list[dict[str, float]]) -> Measured:
    return Measured([2.0, 4.0, 3.0], [1.0, 3.0, 3.0], phases, 100, "resident set", {}, None)


@pytest.mark.parametrize("overrides", [[], ["training.accumulate=2"], ["method=byol", "training.max_steps=2"]])
def test_every_round_has_its_steps_and_phases_that_add_up(tiny, overrides, monkeypatch):
    calls: list[bool] = []
    step = Loop.step

    def counted(loop: Loop) -> None:
        calls.append(isinstance(loop.batches, itertools.repeat))
        step(loop)

    monkeypatch.setattr(Loop, "step", counted)
    _, found = bench(tiny(*overrides), steps=2, rounds=2)
    assert calls.count(True) == 2 + 2 * 2
    assert calls.count(False) == 5 + 2 + 2 * 2 * 2
    assert len(found.end_to_end) == len(found.ready) == len(found.phases) == 2
    for phases in found.phases:
        assert tuple(phases) == PHASES
        assert all(seconds >= 0 for seconds in phases.values())
        assert all(phases[name] > 0 for name in ("data", "views", "forward", "backward", "update"))
    assert found.peak_bytes > 0
    assert found.bad_step is None


def test_the_phases_and_the_rest_are_the_time_of_the_steps(tiny, monkeypatch):
    session = build(tiny())
    loop = loop_of(session)
    clock = HostClock()
    monkeypatch.setattr(bench_module, "clock_for", lambda device: clock)
    phases = bench_module._phases(loop, loop.batches, 3)
    whole = clock._marks[-1][1] - clock._marks[0][1]
    assert 3 * sum(phases.values()) == pytest.approx(whole)


def test_every_part_of_a_step_is_marked_in_its_turn(tiny):
    loop = loop_of(build(tiny("training.accumulate=2")))
    clock = HostClock()
    with clock.running():
        loop.step()
    micro_batch = ["views", "transfer", "views", "forward", "backward"]
    marked = [name for name, _ in clock._marks if name != "rest"]
    assert marked == ["data", *micro_batch, *micro_batch, "update", "update"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_ready_step_is_the_whole_step_on_the_same_batch(tiny, accumulate):
    ended = []
    for ready in (False, True):
        session = build(tiny(f"training.accumulate={accumulate}", "schedule.warmup_epochs=0"))
        loop = loop_of(session)
        first = next(session.source.batches(0))
        loop.batches = iter([loop.ready(first) if ready else first])
        loop.step()
        ended.append(session.method.state_dict())
    begun = build(tiny()).method.state_dict()
    assert not all(torch.equal(begun[name], tensor) for name, tensor in ended[0].items())
    assert all(torch.equal(ended[1][name], tensor) for name, tensor in ended[0].items())


def test_a_clock_does_not_change_what_a_step_computes(tiny):
    ended = []
    for clock in (None, HostClock()):
        session = build(tiny("schedule.warmup_epochs=0"))
        loop = loop_of(session)
        if clock is None:
            loop.step()
        else:
            with clock.running():
                loop.step()
        ended.append(session.method.state_dict())
    assert all(torch.equal(ended[1][name], tensor) for name, tensor in ended[0].items())


def test_ready_steps_make_no_views(tiny, monkeypatch):
    session = build(tiny())
    loop = loop_of(session)
    ready = loop.ready(next(loop.batches))
    monkeypatch.setattr(session.views, "apply", None)
    loop.batches = iter([ready])
    loop.step()


def test_ready_views_stay_when_their_memory_is_used_again(tiny, monkeypatch):
    loop = loop_of(build(tiny()))
    first = next(loop.batches)
    made = loop.make_views(first[0])
    wanted = [view.clone() for view in made]
    monkeypatch.setattr(Loop, "make_views", lambda loop, batch: made)
    (ready,) = loop.ready(first)
    for view in made:
        view.zero_()  # as a CUDA graph does when it is replayed
    assert all(torch.equal(one, other) for one, other in zip(loop.make_views(ready), wanted, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_from_workers_are_timed_and_the_workers_end(tiny, tmp_path, workers):
    overrides = photographs(tmp_path / "photographs")
    session, found = bench(tiny(*overrides, f"training.workers={workers}"), steps=1, rounds=1)
    assert found.phases[0]["data"] > 0
    assert session.source._running is None
    assert found.held_bytes["data set"] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_time_in_which_workers_are_waited_for_is_waiting(tiny, tmp_path, workers):
    session = build(tiny(*photographs(tmp_path / "photographs"), f"training.workers={workers}"))
    assert session.source.ahead == 2 * workers  # a batch is one slice, and each worker is given two
    clock = HostClock()
    try:
        with clock.running():
            loop_of(session).step()
    finally:
        session.source.close()
    assert ("waiting" in {name for name, _ in clock._marks}) == bool(workers)


def test_what_is_ready_beforehand_is_used_up_before_the_clock_starts(tiny, monkeypatch):
    session = build(tiny())
    session.source.ahead = 3
    loop = loop_of(session)
    steps: list[str] = []
    monkeypatch.setattr(Loop, "step", lambda loop: steps.append("step"))
    monkeypatch.setattr(bench_module.time, "perf_counter", lambda: steps.append("clock") or 0.0)
    bench_module._seconds(loop, loop.batches, 2)
    assert steps == ["step"] * 3 + ["clock"] + ["step"] * 2 + ["clock"]


def test_a_short_run_begins_again(tiny):
    session, _ = bench(tiny("training.epochs=1"), steps=3, rounds=1)
    assert session.info.total_steps == 4  # and there were 5 + 2 + 2 + 9


def test_nothing_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench(tiny("callbacks.tensorboard={}", "output=here"), steps=1, rounds=1)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="bench: measures one process; start it without torchrun"):
        bench(tiny(), steps=1, rounds=1)


def test_too_little_memory_is_told_in_a_line_and_the_source_is_closed(tiny, monkeypatch):
    def fail(loop: Loop) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    closed = []
    monkeypatch.setattr(Loop, "step", fail)
    monkeypatch.setattr("sslcli.data.source.ResidentSource.close", lambda source: closed.append(source))
    with pytest.raises(SslError, match=r"out of memory: try a smaller training\.batch_size"):
        bench(tiny(), steps=1, rounds=1)
    assert len(closed) == 1


def test_a_loss_that_is_not_finite_is_noted(tiny, odd_plugins):
    _, found = bench(tiny("method={name: nan_method, bad_step: 2}"), steps=1, rounds=1)
    assert found.bad_step == 2


# --- figures


def test_the_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_the_medians():
    assert measured([{}]).ratio == Spread(0.75, 0.5, 1.0)


def test_the_phases_shown_are_those_of_the_median_round():
    rounds = [{"data": 3.0, "rest": 3.0}, {"data": 1.0, "rest": 1.0}, {"data": 0.0, "rest": 3.0}]
    assert measured(rounds).typical == rounds[2]
    assert measured(rounds[:2]).typical == rounds[1]  # of an even number the faster one: a step that was made


def test_the_file_has_every_figure(tiny):
    session, found = bench(tiny(), steps=1, rounds=2)
    written = as_json(session, found, 1, ["ssl", "bench"])
    assert set(written) == {
        "time", "command", "sslcli", "python", "torch", "torchvision", "platform", "processor", "cores", "cpu_threads",
        "huge_pages", "gpu", "config", "plan", "steps", "rounds", "images_per_second", "ratio", "phases",
        "phases_clock", "memory", "first_step_with_bad_loss", "seconds_per_step",
    }  # fmt: skip
    assert written["config"]["training"]["precision"] == "fp32"
    assert written["config"]["training"]["compile"] == "none"
    assert written["rounds"] == len(written["seconds_per_step"]["ready"]) == 2
    assert tuple(written["phases"]) == PHASES
    assert sum(entry["share"] for entry in written["phases"].values()) == pytest.approx(1, abs=1e-4)
    rates = written["images_per_second"]["end_to_end"]
    assert rates["min"] <= rates["median"] <= rates["max"]
    assert rates["max"] == pytest.approx(8 / min(found.end_to_end), rel=1e-4)
    assert headline(session).startswith("simclr, resnet18, shapes; batch of 8, views: 2 of 16 px; cpu, fp32, compiled:")


# --- memory


def test_what_a_session_holds_is_counted_in_bytes(tiny):
    session = build(tiny("optimizer={name: adamw, lr: 0.001}"))
    loop_of(session).step()
    held = held_bytes(session)
    trained = sum(p.numel() for p in session.method.parameters() if p.requires_grad)
    tensors = sum(1 for p in session.method.parameters() if p.requires_grad)
    assert held["data set"] == 32 * 3 * 16 * 16
    assert held["parameters"] == sum(t.nbytes for t in session.method.state_dict().values())
    assert held["optimizer state"] == 4 * (2 * trained + tensors)  # two moments, and each parameter's step


@pytest.mark.skipif(not memory._RESET.exists(), reason="the system cannot start the count anew")
def test_the_peak_is_of_the_time_since_it_was_made():
    size = 200 * 2**20
    before = PeakMemory(torch.device("cpu"))
    assert before.kind == "resident set"
    begin = before.bytes()
    torch.ones(size, dtype=torch.uint8)
    assert before.bytes() > begin + 0.9 * size
    assert PeakMemory(torch.device("cpu")).bytes() < begin + 0.5 * size


def test_where_the_count_cannot_be_started_anew_the_peak_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "nothing" / "here")
    peak = PeakMemory(torch.device("cpu"))
    assert peak.kind == "resident set since the process began"
    assert peak.bytes() > 50 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_phases_do_not_wait_for_the_device(tiny):
    from sslcli.phases import clock_for

    session = build(tiny("training.device=cuda", "training.precision=bf16"))
    loop = loop_of(session)
    loop.step()  # what is made once may wait
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
