"""One process trains a run, not what it forks; a start that was killed is taken up; files of others are not touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ConfigMaker
from run_helpers import contents, newest, refused

from sslcli.contracts.errors import SslError, UserError
from sslcli.methods.simclr import SimCLR
from sslcli.runs import directory as directory_module
from sslcli.runs.directory import RunDirectory
from sslcli.runs.lock import RunLock
from sslcli.runs.overview import is_running
from sslcli.training import train as train_module
from sslcli.training.train import train


def test_a_forked_process_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / ".lock")
    (is_ready, ready), (is_over, over) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(over)
        os.write(ready, b"x")
        os.read(is_over, 1)
        os._exit(0)
    os.read(is_ready, 1)
    with pytest.raises(UserError, match=f"{tmp_path}: another process is training this run"):
        RunLock(tmp_path / ".lock")
    lock.close()  # as the end of the parent does
    assert not is_running(tmp_path)
    RunLock(tmp_path / ".lock").close()
    os.close(over)
    assert os.waitpid(child, 0)[1] == 0
    for each in (is_ready, ready, is_over):
        os.close(each)


def test_the_lock_of_a_run_comes_before_anything_else(tiny: ConfigMaker, tmp_path: Path) -> None:
    train(tiny("training.max_steps=4"), tmp_path / "run")
    lock, before = RunLock(tmp_path / "run/.lock"), contents(tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(UserError, match="another process is training this run"):
            train(tiny(), tmp_path / "run", resume=resume)
    lock.close()
    assert contents(tmp_path / "run") == before
    with pytest.raises(UserError, match="already contains a run"):
        train(tiny(), tmp_path / "run")
    with pytest.raises(UserError, match="cannot be resumed with another config"):
        train(tiny("seed=9"), tmp_path / "run", resume=True)
    assert not is_running(tmp_path / "run")  # whatever has failed


@pytest.mark.parametrize("resume", [False, True])
def test_what_another_process_did_meanwhile_is_seen_under_the_lock(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Both starts find an empty place; one has trained when the other gets to its first write."""
    prepare, run = train_module.prepared, tmp_path / "run"

    def late(*arguments: Any) -> Any:
        monkeypatch.undo()
        train(tiny("training.max_steps=4"), run)
        before.update(contents(run))
        return prepare(*arguments)

    before: dict[Path, bytes] = {}
    monkeypatch.setattr(train_module, "prepared", late)
    with pytest.raises(UserError, match="already contains a run; resume it with --resume"):
        train(tiny(), run, resume=resume)
    assert contents(run) == before


WRITES = ["RunLock", "remove_dead", "dump_yaml", "describe_environment"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_a_start_that_was_killed_is_taken_up_by_the_same_command(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str, resume: bool
) -> None:
    def kill(*arguments: Any, **options: Any) -> Any:
        raise SslError("killed")

    monkeypatch.setattr(directory_module, write, kill)
    with pytest.raises(SslError, match="killed"):
        train(tiny("training.max_steps=1"), tmp_path / "run", resume=resume)
    monkeypatch.undo()
    (tmp_path / "run/.config.yaml.a1b2c3d4.tmp").write_text("half of it")
    train(tiny("training.max_steps=1"), tmp_path / "run", resume=resume)
    assert newest(tmp_path / "run").step == 1
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("resume", [False, True])
def test_so_is_one_whose_first_steps_fail(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    forward, count = SimCLR.forward, 0

    def failing(self: SimCLR, batch: Any) -> Any:
        nonlocal count
        count += 1
        if count > 1:
            raise RuntimeError("a bug")
        return forward(self, batch)

    monkeypatch.setattr(SimCLR, "forward", failing)
    config = tiny("callbacks.knn={}", "training.max_steps=4")  # which logs at step 0, after the first step
    with pytest.raises(RuntimeError, match="a bug"):
        train(config, tmp_path / "run")
    assert '"step": 0' in (tmp_path / "run/metrics.jsonl").read_text()
    monkeypatch.setattr(SimCLR, "forward", forward)
    train(config, tmp_path / "run", resume=resume)
    assert newest(tmp_path / "run").step == 4


def foreign_config(run: Path) -> None:
    (run / "config.yaml").write_text("of another program")


def foreign_file(run: Path) -> None:
    (run / ".lock").touch()
    (run / "checkpoints").mkdir()
    (run / "thesis.tex").write_text("years of work")


def foreign_checkpoints(run: Path) -> None:
    (run / "checkpoints").mkdir()
    (run / "checkpoints/model.ckpt").write_text("of another program")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("fill", [foreign_config, foreign_file, foreign_checkpoints])
def test_files_of_others_are_not_touched(
    tiny: ConfigMaker, tmp_path: Path, fill: Callable[[Path], None], resume: bool
) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"contains no run.*; choose another --output"):
        train(tiny(), tmp_path, resume=resume)
    assert contents(tmp_path) == before


def test_copies_of_plugins_are_renewed_and_other_files_beside_them_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create({}, [], resumed=False)
    directory.close()
    (tmp_path / "run/plugins").mkdir()
    for name in ("mine-0123abcd.py", "notes.txt", "other.py"):
        (tmp_path / "run/plugins" / name).touch()
    directory.create({}, [], resumed=False)
    directory.close()
    assert {path.name for path in (tmp_path / "run/plugins").iterdir()} == {"notes.txt", "other.py"}


def test_a_run_without_a_config_says_how_to_start_it_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "checkpoints").mkdir()
    message = refused("train", tmp_path, "--resume")
    assert message.endswith(f"start it again: `ssl train CONFIG --output {tmp_path}`")
