"""The soak's own judgment: it sees what it looks for, and its ledger adds up. One real trial of each kind is slow."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soak import forks, kills, ledger, outcome, steady
from sslcli.runs import files

ROOT = Path(__file__).parents[2]


def write_run(folder: Path, weight: float = 1.0, steps: tuple[int, ...] = (2, 4)) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    tensors = {"a": torch.full((3,), weight), "b": torch.zeros(1, dtype=torch.int64)}
    files.write(folder / "backbone.safetensors", tensors, {"card": {}})
    document = {"step": steps[-1], "numbers": {"x": 1}, "scaler": {}}
    files.write(folder / "checkpoints" / "step-000000004.safetensors", tensors, document)
    lines = [json.dumps({"step": step, "loss": 1.0, "images_per_second": id(folder)}) for step in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_equal_runs_have_no_differences_and_a_changed_weight_or_a_lost_line_is_named(tmp_path):
    first = write_run(tmp_path / "first")
    assert outcome.differences(first, write_run(tmp_path / "same")) == []
    found = outcome.differences(first, write_run(tmp_path / "other", weight=1 + 2**-23))
    assert found == ["backbone.safetensors: 1 of 2 tensors, a first",
                     "checkpoints/step-000000004.safetensors: 1 of 2 tensors, a first"]  # fmt: skip
    [found] = outcome.differences(first, write_run(tmp_path / "twice", steps=(2, 2, 4)))
    assert found.startswith("metrics.jsonl: 3 lines of 2")
    (first / "backbone.safetensors").unlink()
    assert outcome.differences(write_run(tmp_path / "last"), first) == ["backbone.safetensors is missing"]


def test_temporary_files_and_locks_that_are_held_are_found(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".config.yaml.x.tmp", ".lock", "config.yaml"):
        (tmp_path / "run" / name).touch()
    assert outcome.left_files(tmp_path) == ["run/.config.yaml.x.tmp"]
    with (tmp_path / "run" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert outcome.left_files(tmp_path) == ["run/.config.yaml.x.tmp", "run/.lock is held"]


@pytest.mark.parametrize(
    ("codes", "messages", "signal", "ranks", "problem"),
    [
        ((-9,), "", 9, (0,), None),
        ((143,), "ssl: interrupted and saved", 15, (0,), None),
        ((-9, 1), "ssl: the others cannot be reached", 9, (0,), None),
        ((1,), "ssl: cannot read it", 9, (0,), "lost"),
        ((-9, 1), "ssl: cannot read it", 9, (0, 1), "lost"),
        ((143,), "Traceback (most recent call last):", 15, (0,), "traceback"),
        ((2,), "ssl: is not empty", None, (), "lost"),
        ((-11,), "", None, (), "lost"),
    ],
)
def test_a_start_ends_by_our_signal_or_well(codes, messages, signal, ranks, problem):
    kill = forks.Kill(signal, delay=0.1, ranks=ranks) if signal else None
    found = kills._judged(forks.Ended(codes, (messages,), (), (), 1.0, timed_out=False), kill)
    assert (found and found[0]) == problem
    assert kills._judged(forks.Ended(codes, (messages,), (), (), 1.0, timed_out=True), kill)[0] == "late"


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("open run/.config.yaml.x8s0.tmp", "config"),
        ("write run/checkpoints/.tmpUzq", "checkpoints"),
        ("write run/.tmpFI7G7T", "tmp"),
        ("rename run/metrics.jsonl", "metrics"),
        ("open run/.lock", "lock"),
        ("write cache/train-10.cache", "cache"),
        ("mkdir run", "run"),
    ],
)
def test_a_call_is_named_after_what_it_changes_by_a_part_of_its_path(call, part):
    assert kills.part_of(call) == part
    assert part in call


def test_what_grows_in_a_long_run_is_named_and_what_others_slow_down_is_not():
    flat = [
        {"step": step, "cpu": step * (0.02 if step % 1000 < 800 else 0.03), "memory": 500, "files": 5, "threads": 3}
        for step in range(0, 20_000, 20)
    ]
    assert steady.judged(flat, 20_000)[1] == []
    leaking = [{**each, "memory": 500 + each["step"] / 1000, "files": 5 + each["step"] // 9000} for each in flat]
    named = [text.split()[0] for _, text in steady.judged(leaking, 20_000)[1]]
    assert named == ["memory", "files"]
    slower = [{**each, "cpu": each["cpu"] * (1 + each["step"] / 40_000)} for each in flat]
    assert [text.split()[0] for _, text in steady.judged(slower, 20_000)[1]] == ["step"]
    assert steady.judged(flat[:30], 20_000)[1][0][0] == "late"


def test_the_ledger_adds_up_over_days_and_leaves_out_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "ledger.jsonl"
    kill = {"signal": "SIGKILL", "moment": "config"}
    common = {"command": "train", "processes": 2, "starts": 3, "seconds": 30.0}
    ledger.append(path, "kills", **common, seed=1, method="byol", kills=[kill, kill], problems=[])
    ledger.append(path, "kills", **common, seed=2, method="dino", kills=[kill], problems=[("lost", "why")])
    ledger.append(path, "fuzz", seconds=60.0, problems=[])
    ledger.append(path, "fuzz", seconds=90.0, problems=[], found="nothing")
    with path.open("a") as file:
        file.write('{"part": "kil')
    found = ledger.totals(ledger.read(path))
    assert (found["kills"]["kills"], found["kills"]["runs"], found["kills"]["lost"]) == (3, 2, 1)
    assert found["kills"]["by_method"] == {"byol": 2, "dino": 1}
    assert (found["fuzz"]["times"], found["fuzz"]["minutes"], found["fuzz"]["last"]["found"]) == (2, 2.5, "nothing")
    text = ledger.report(path)
    assert "lost runs 1, different weights 0" in text
    assert "lost: kills of" in text
    assert "seed 2: why" in text


def soak(path: Path, *words: str) -> tuple[int, dict]:
    """Runs `.ci/soak` with a ledger; returns its exit status and the ledger's totals."""
    command = [str(ROOT / ".ci" / "soak"), *words, "--ledger", str(path)]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, timeout=280)
    return done.returncode, ledger.totals(ledger.read(path))


@pytest.mark.slow  # a dozen starts of a run
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    code, found = soak(tmp_path / "ledger", "kills", "--count", "10", "--seed", "7", "--methods", "simclr,byol")
    problems = {name: found["kills"][name] for name in ledger.PROBLEMS}
    assert (code, problems) == (0, dict.fromkeys(ledger.PROBLEMS, 0)), ledger.report(tmp_path / "ledger")
    assert found["kills"]["kills"] >= 10


@pytest.mark.slow  # 20,000 links, 100 runs
@pytest.mark.parametrize(("part", "count"), [("files", 20_000), ("runs", 100)])
def test_many_files_and_many_runs_are_listed(part, count, tmp_path):
    code, found = soak(tmp_path / "ledger", part, "--count", str(count))
    assert (code, found[part]["last"]["count"]) == (0, count)
