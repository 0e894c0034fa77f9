"""What `ssl runs` knows of a run: from its small files alone, whatever state they are in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sslcli.runs import layout
from sslcli.runs.directory import RunDirectory
from sslcli.runs.overview import find_runs, newest_first, summarize

CONFIG = """\
seed: 0
method:
  name: simclr
  projector: {name: no, layers: 2}
data: {root: /a, name: images, mean: null}
training: {epochs: 3.0, max_steps: null, batch_size: 8}
"""
LOG = [{"step": 0, "epoch": 0.0, "knn_top1": 0.1}, {"step": 4, "epoch": 0.6667, "loss": 2.5}]


def written(run: Path, *, end: Any = "absent", log: Any = LOG, saved: int = 0, config: str = CONFIG) -> Path:
    """Writes the small files of a run; with `end` as a version that records it would."""
    (run / layout.CHECKPOINTS).mkdir(parents=True)
    (run / layout.CONFIG).write_text(config)
    (run / layout.METRICS).write_text("".join(json.dumps(record) + "\n" for record in log))
    if saved:
        layout.checkpoint_path(run / layout.CHECKPOINTS, saved).write_bytes(b"")
    if end != "absent":
        start = {"steps": 18, "end": end}
        (run / layout.ENVIRONMENT).write_text(json.dumps({"starts": [{"steps": 7, "end": None}, start]}))
    return run


def test_a_run_is_described_by_its_config_its_log_and_how_it_ended(tmp_path: Path) -> None:
    run = summarize(written(tmp_path / "a", end={"state": "failed", "error": "no space"}, saved=2))
    assert (run.method, run.data, run.step, run.steps, run.knn) == ("simclr", "images", 4, 18, None)
    assert (run.state, run.error) == ("failed", "no space")
    log = [*LOG, {"step": 6, "knn_top1": 0.05}, {"step": 7, "loss": 2.0}]
    assert summarize(written(tmp_path / "b", log=log)).knn == 0.05


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"end": {"state": "done"}}, "done"),
        ({"end": {"state": "interrupted"}, "saved": 4}, "interrupted"),
        ({"end": None, "saved": 4}, "crashed"),
        ({"end": None, "log": []}, "crashed"),
        ({"log": []}, "empty"),
        ({"saved": 4}, "interrupted"),  # this and the following: of a version that did not record the end
        ({"saved": 2}, "crashed"),
        ({"saved": 18}, "done"),
    ],
)
def test_the_state_of_a_run_that_no_process_writes(tmp_path: Path, files: dict[str, Any], state: str) -> None:
    assert summarize(written(tmp_path / "a", **files)).state == state


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ("training: {epochs: 3, max_steps: null}", 18),
        ("training:\n  epochs: 3\n  max_steps: 10\n", 10),
        ("training: {epochs: 1.0e+2}", 600),
        ("training: {batch_size: 8}", None),
    ],
)
def test_the_length_of_an_older_run_follows_from_its_log(tmp_path: Path, training: str, steps: int | None) -> None:
    assert summarize(written(tmp_path / "a", config=f"method: simclr\n{training}\n")).steps == steps


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("method: simclr", "simclr"),
        ("method: 'python:Mine'", "python:Mine"),
        ("method: {temperature: 1, name: dino}", "dino"),
        ("method:\n# why\n  temperature: 1\n\n  name: dino\ndata: cifar10", "dino"),
        ("method: [", None),
        ("data: cifar10", None),
    ],
)
def test_names_are_found_in_any_style_of_yaml(tmp_path: Path, section: str, name: str | None) -> None:
    assert summarize(written(tmp_path / "a", config=f"seed: 1\n{section}\n")).method == name


def test_a_run_is_running_while_a_process_has_its_lock(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a")
    directory.create({"method": {"name": "simclr"}}, [], resumed=False, steps=9)
    assert (summarize(directory.path).state, summarize(directory.path).steps) == ("running", 9)
    directory.close()
    assert summarize(directory.path).state == "crashed"  # as after a kill, which frees the lock too
    directory.create({"method": {"name": "simclr"}}, [], resumed=True)
    directory.record_end("interrupted")
    directory.close()
    assert summarize(directory.path).state == "interrupted"
    directory.record_end("done")  # of one that does not write the run
    assert summarize(directory.path).state == "interrupted"


GARBAGE = [
    b"",
    b"\xff\xfe\0",
    b"{" * 3000,
    b'{"starts": 3}',
    b'{"starts": [{"end": {"state": 3}, "steps": "x"}]}',
    b'{"step": NaN, "knn_top1": "x"}\n"step"\n{"step": [], "epoch": 0}',
    b"method: &a [*a]\ntraining: {epochs: 9e999}",
]


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_damaged_files_are_not_errors(tmp_path: Path, content: bytes, kind: str) -> None:
    for name in (layout.CONFIG, layout.METRICS, layout.ENVIRONMENT, layout.LOCK, layout.CHECKPOINTS):
        run = written(tmp_path / f"run-{name}", end=None)
        (run / layout.LOCK).touch()
        target = run / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        if kind == "file":
            target.write_bytes(content)
        elif kind == "folder":
            target.mkdir()
        else:
            os.mkfifo(target)
        assert summarize(run).path == run
    assert len(find_runs(tmp_path)) == 5


def test_runs_are_found_two_folders_deep_and_once(tmp_path: Path) -> None:
    for name in ("b", "study/a", "study/deep/er"):
        written(tmp_path / name)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "1.jpg").touch()
    (tmp_path / "latest").symlink_to(tmp_path / "b")
    (tmp_path / "gone").symlink_to(tmp_path / "missing")
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["b", "nothing", "study/a"]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]
    assert find_runs(tmp_path / "missing") == []


def test_the_newest_run_is_the_one_that_training_wrote_last(tmp_path: Path) -> None:
    for hours, name in enumerate(("c", "a", "b")):
        run = written(tmp_path / name, saved=4)
        for path in run.rglob("*"):
            os.utime(path, (1e9 + 3600 * hours,) * 2)
    assert [run.name for run in newest_first(tmp_path)] == ["b", "a", "c"]
    (tmp_path / "c" / "backbone.safetensors").touch()  # as `ssl export` writes it
    assert newest_first(tmp_path)[0].name == "b"
    os.utime(tmp_path / "c" / layout.METRICS, (2e9, 2e9))
    assert newest_first(tmp_path)[0].name == "c"
