"""Stages on a lent GPU: limits hold, every result is on the disk, an interrupted rung is packed, parts fit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_helpers import BENCHMARKS, Import, benchmark  # noqa: F401  # a fixture
from tiny_data import write_cifar10

from sslcli.plugins import find, load

# ruff: noqa: F811

MakeRunner = Callable[..., Any]
#: A stand-in for `ssl train … --output RUN`: trains until it is told to end, then saves.
TRAINS = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[-1])
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
lines = ['{"step": 3, "knn_top1": 0.2}', '{"step": 6, "loss": 0.5}', '{"step": 6, "knn_top1": 0.3}']
(run / "metrics.jsonl").write_text("\\n".join(lines))
def save(*_):
    (run / "checkpoints/step-000000007.safetensors").write_bytes(b"weights" * 100)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(run / "started").touch()
time.sleep(60)
"""


@pytest.fixture
def make(benchmark: Import, tmp_path: Path) -> MakeRunner:
    def make(seconds: float = 60.0, **more: Any) -> Any:
        return benchmark("gpu.runner").Runner(tmp_path / "out", tmp_path / "work", seconds, "cpu", **more)

    return make


def records(runner: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in runner.results.read_text().splitlines()]


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_a_job_notes_its_end_and_a_failure_the_end_of_its_output(make: MakeRunner) -> None:
    runner = make()
    assert runner.one("good", python("print('fine')"), 30)
    assert not runner.one("bad", python("print('so far'); raise SystemExit(3)"), 30)
    good, bad = records(runner)
    assert (good["name"], good["status"]) == ("good", 0)
    assert "end" not in good
    assert (bad["status"], bad["end"]) == (3, "so far\n")
    assert "fine" in (runner.out / "log.txt").read_text()


def test_what_takes_too_long_is_ended_with_all_its_children(make: MakeRunner, tmp_path: Path) -> None:
    runner = make()
    write = f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(os.getpid()))"
    child = f"import os, pathlib, time; {write}; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    job = runner.start("slow", python(parent))
    _until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    assert not runner.finish(job, 0)
    assert records(runner)[0]["status"] == "out of time"
    _until(lambda: not _runs(int((tmp_path / "child").read_text())))


def _until(ready: Callable[[], Any]) -> None:
    for _ in range(2000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_begins_when_no_time_is_left(make: MakeRunner, benchmark: Import) -> None:
    runner = make(seconds=8.0)
    assert not runner.one("late", python(""), 30)
    runner.many([("also late", python(""))], 2, 30)
    benchmark("gpu.stages").run(runner, "costs")
    assert [r["status"] for r in records(runner)] == ["no time left"] * 3


def test_many_jobs_run_and_each_has_its_line(make: MakeRunner) -> None:
    runner = make()
    jobs = [(str(number), python(f"raise SystemExit({number})")) for number in range(5)]
    runner.many(jobs, 3, 30)
    assert {r["name"]: r["status"] for r in records(runner)} == {str(number): number for number in range(5)}


def test_a_stage_that_raises_is_a_line(make: MakeRunner, benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, runner = benchmark("gpu.stages"), make()
    monkeypatch.setitem(stages.STAGES, "costs", lambda runner: 1 / 0)
    stages.run(runner, "costs")
    assert "ZeroDivisionError" in records(runner)[0]["error"]
    assert records(runner)[0]["stage"] == "costs"


def test_a_rung_at_its_limit_is_saved_packed_and_brought_back(
    make: MakeRunner, benchmark: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rungs, packing, runner = benchmark("gpu.rungs"), benchmark("gpu.packing"), make(seconds=0.0, tiny=True)
    monkeypatch.setattr(rungs, "PIECES_A_CALL", 3)
    monkeypatch.setattr(packing, "PIECE", 300)
    run = runner.work / "rungs/G2"
    monkeypatch.setattr(type(runner), "ssl", lambda *_: [sys.executable, "-S", "-c", TRAINS, str(run)])
    wait = subprocess.Popen.wait

    def limited(process: Any, timeout: float | None = None) -> int:
        if (run / "started").exists():
            return wait(process, timeout)
        _until((run / "started").exists)  # the limit is reached as soon as it trains
        raise subprocess.TimeoutExpired("train", 0)

    monkeypatch.setattr(subprocess.Popen, "wait", limited)
    runner.stage = "G2"
    rungs.climb(runner, "G2", [], [])
    found = {r["name"]: r for r in records(runner)}
    assert (found["piece"]["from"], found["piece"]["to"], found["piece"]["arrived"]) == (0, 7, False)
    assert found["piece"]["loss"] == 0.5
    assert found["piece"]["knn"] == [[3, 0.2], [6, 0.3]]
    assert found["train"]["status"] == 143
    assert found["brought back"]["pieces"] == ["G2.000", "G2.001", "G2.002"]
    rungs.bring_back(runner, "G2", 3)
    pieces = sorted(runner.out.glob("G2.*"))
    assert len(pieces) == found["packed"]["pieces"] > 3
    # On the next machine, it is there as soon as all of its parts are.
    part = tmp_path / "part"
    (part / "state").mkdir(parents=True)
    for piece in pieces:
        (part / "state" / piece.name).write_bytes(piece.read_bytes())
    other = benchmark("gpu.runner").Runner(tmp_path / "there", tmp_path / "elsewhere", 60, "cpu", packed=(part,))
    benchmark("gpu.stages").unpack(other)
    there = other.work / "rungs/G2/checkpoints/step-000000007.safetensors"
    assert there.read_bytes() == b"weights" * 100


def test_pieces_of_two_packings_are_noted_and_the_rung_is_not_started_over(
    make: MakeRunner, benchmark: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing, rungs, stages = (benchmark(f"gpu.{name}") for name in ("packing", "rungs", "stages"))
    monkeypatch.setattr(packing, "PIECE", 1000)
    pieces = []
    for content in (1, 2):
        run = tmp_path / f"run{content}"
        (run / "checkpoints").mkdir(parents=True)
        noise = random.Random(content).randbytes(1500)
        (run / "checkpoints/step-000000007.safetensors").write_bytes(noise)
        pieces.append(packing.pack_run(run))
    state = tmp_path / "part/state"
    state.mkdir(parents=True)
    for number, piece in enumerate([pieces[0][0], *pieces[1][1:]]):
        (state / f"G2.{number:03}").write_bytes(piece)
    runner = make(packed=(tmp_path / "part",))
    stages.unpack(runner)
    monkeypatch.setattr(rungs, "_train", lambda *_: pytest.fail("starts over"))
    rungs.climb(runner, "G2", [], [])
    notes = [(record["name"], record["status"]) for record in records(runner)]
    assert notes == [
        ("unpacked", "not whole"),
        ("train", "the pieces that were brought are not one packed run: not started over"),
    ]


def test_a_rung_waits_for_both_halves_of_the_images(make: MakeRunner, benchmark: Import) -> None:
    runner = make()
    benchmark("gpu.stages").run(runner, "G1")
    assert "both halves" in records(runner)[0]["status"]


def test_a_signal_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, gpu.stages as s, gpu.__main__ as m\n"
        "def slow(runner):\n"
        "    runner.note('before', value=1)\n"
        "    runner.one('sleeps', [sys.executable, '-S', '-c', 'import time; time.sleep(60)'], 60)\n"
        "s.STAGES = {'costs': slow}\n"
        "s.about = s.unpack = lambda runner: None\n"
        "sys.exit(m.main(['run', '--stages', 'costs', '--out', 'out', '--work', 'work', '--device', 'cpu']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    results = tmp_path / "out/results.jsonl"
    _until(lambda: results.exists() and list((tmp_path / "work/logs").iterdir()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [r["name"] for r in found] == ["before", "stopped", "sleeps"]
    assert found[0]["value"] == 1
    assert found[2]["status"] == -signal.SIGTERM


def test_a_line_that_was_cut_off_is_left_out(benchmark: Import, tmp_path: Path) -> None:
    lines = benchmark("gpu.lines")
    lines.append(tmp_path / "r.jsonl", {"name": "whole"})
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"name": "ha')
    assert lines.read(tmp_path / "r.jsonl") == [{"name": "whole"}]


def test_stages_are_those_of_the_two_parts_and_their_names_are_checked(benchmark: Import) -> None:
    stages = benchmark("gpu.stages")
    (_, first), (_, second) = stages.PARTS["a"], stages.PARTS["b"]
    assert [*first, *second] == list(stages.STAGES)
    assert stages.PARTS["a"][0] + stages.PARTS["b"][0] + 200 <= 900  # with the machine's start and two transfers
    assert stages.names("env,G0") == ["env", "G0-simclr", "G0-vicreg", "G0-byol", "G0-swav"]
    assert stages.names("all,G1") == [*stages.STAGES, "G1"]
    with pytest.raises(ValueError, match="'bnch' is no stage"):
        stages.names("env,bnch")


def test_every_method_has_its_turn(benchmark: Import) -> None:
    names = {p.name for p in find("methods") if p.package == "sslcli"}
    with_a_teacher = {name for name in names if "teacher" in load("methods", name).needs}  # there is none to be had
    assert set(benchmark("gpu.stages").METHODS) == names - with_a_teacher


def test_pieces_go_where_there_is_room_and_the_images_into_two_parts(benchmark: Import, tmp_path: Path) -> None:
    prepare = benchmark("gpu.prepare")

    def files(name: str, count: int, size: int) -> list[Path]:
        paths = [tmp_path / f"{name}.{number:03}" for number in range(count)]
        for path in paths:
            path.write_bytes(bytes(size))
        return paths

    images, pieces = files("images", 6, 17), files("G2", 8, 10)
    parts = prepare.distribute(images, pieces, 62)
    assert [len(part) for part in parts] == [4, 4, 6]
    assert sorted(path for part in parts for path in part) == sorted([*images, *pieces])
    assert max(sum(path.stat().st_size for path in part) for part in parts) <= 62
    with pytest.raises(prepare.Unprepared, match="half of the images"):
        prepare.distribute(images, [], 50)
    shown = "\n".join(prepare.commands(3, "G2"))
    assert shown.count("carry .gpu/") == 3
    assert "--stages G2" in shown
    assert "--bring G2:6" in shown
    assert "--bring G2:12" not in shown
    assert "--bring G0:12" in "\n".join(prepare.commands(3, "G0"))  # the largest of them, BYOL's, is 17 pieces


def test_what_is_packed_is_what_unpacking_gives(benchmark: Import, make: MakeRunner, tmp_path: Path) -> None:
    prepare, root = benchmark("gpu.prepare"), tmp_path / "data"
    write_cifar10(root)
    prepare.pack_cifar(root, tmp_path / "part/cifar10")
    runner = make(packed=(tmp_path / "part",))
    stages = benchmark("gpu.stages")
    stages.unpack(runner)
    there = runner.work / "cifar10/cifar-10-batches-py"
    for path in (root / "cifar-10-batches-py").iterdir():
        assert (there / path.name).read_bytes() == path.read_bytes()
    assert stages.has_cifar(runner)
    assert stages.data(runner)[0] == f"data.root={runner.work / 'cifar10'}"
    (there / "test_batch").unlink()
    assert "shapes" in stages.data(runner)[0]
    (root / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(prepare.Unprepared, match="test_batch: is missing"):
        prepare.pack_cifar(root, tmp_path / "other")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["prepare", "--rung", "G9"], "is no rung"), (["prepare", "--state", "x"], "needs --rung"),
     (["keep", "nowhere"], "nowhere"), (["run", "--stages", "x", "--out", "o"], "is no stage")],
)  # fmt: skip
def test_a_wrong_call_is_one_line(
    benchmark: Import, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert benchmark("gpu.__main__").main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []
