"""Which checkpoint is gone on from, and which are kept: good ones count, and the others are named for what they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from run_helpers import contents, newest, poison, refused, ssl

from sslcli.config.document import Document
from sslcli.config.resolve import resolve
from sslcli.contracts.errors import SslError
from sslcli.runs import checkpoint as checkpoints
from sslcli.runs import files
from sslcli.runs.checkpoint import CheckpointWriter, checkpoint_path, list_checkpoints, newest_intact, read_checkpoint
from sslcli.runs.layout import step_of
from sslcli.runs.overview import summarize
from sslcli.training.train import train


def dangling(path: Path) -> str:
    path.unlink()
    path.symlink_to("/nowhere/at all")
    return "is a link to /nowhere/at all, where there is nothing"


def looping(path: Path) -> str:
    path.unlink()
    path.symlink_to(path)
    return f"is a link to {path}, where there is nothing"


def folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "it is not a regular file"


def pipe(path: Path) -> str:
    path.unlink()
    os.mkfifo(path)
    return "it is not a regular file"


def cut(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return "is damaged"


def infinite(path: Path) -> str:
    poison(path, sorted(files.read(path)[0])[0], float("-inf"))
    return "is not finite"


def newer(path: Path, version: int = 2, **versions: str) -> str:
    tensors, document = files.read(path)
    files.write(path, tensors, {**document, "format_version": version, "versions": versions or {"sslcli": "9.1"}})
    return "was written by a newer version (sslcli 9.1; this is "


FAULTS = [dangling, looping, pipe, cut, infinite]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at the steps 4 and 8."""
    run = tmp_path_factory.mktemp("which") / "run"
    train(resolve(Document({**TINY, "training": {**TINY["training"], "epochs": 2}}, {(): "test"})), run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_and_the_checkpoint_before_is_used(
    run: Path, tmp_path: Path, fault: Callable[[Path], str]
) -> None:
    bad = checkpoint_path(run / "checkpoints", 8)
    named = f"{bad}: "
    reason = fault(bad)
    assert summarize(run).step == 8  # logged
    code, _, err = ssl("export", "backbone", run, "--output", tmp_path / "x.safetensors")
    assert (code, err.count(named)) == (0, 1), err
    assert reason in err
    code, _, err = ssl("train", run, "--resume")
    assert (code, err.count(named)) == (0, 1), err
    assert f"{reason}" in err
    assert "resuming" in err
    assert newest(run).step == 8


def test_one_that_cannot_be_read_is_named_for_that(
    run: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    bad, opened = checkpoint_path(run / "checkpoints", 8), Path.open

    def refusing(self: Path, *arguments: str, **options: str) -> object:
        if self == bad:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refusing)  # root may read everything
    found = newest_intact(run / "checkpoints", read_checkpoint)
    assert found is not None
    assert found.step == 4
    assert messages == [f"warning: {bad}: cannot be read (Permission denied); trying the one before it"]


def test_one_that_vanishes_is_passed_over_and_new_ones_are_found(run: Path, messages: list[str]) -> None:
    """As when a process that trains the run replaces its checkpoints one after the other."""
    made = run / "checkpoints"

    def read(path: Path) -> int:
        if step_of(path) == 8:
            for each in list_checkpoints(made):
                each.rename(checkpoint_path(made, step_of(each) + 8))
        return read_checkpoint(path).step

    assert newest_intact(made, read) == 8
    assert [line.count("was deleted before it could be read") for line in messages] == [1, 1]
    shutil.rmtree(made)
    assert newest_intact(made, read) is None


def save(directory: Path, steps: list[int], keep: int = 2) -> None:
    writer = CheckpointWriter(directory, keep)
    for step in steps:
        writer.save(step, {"x": torch.full((3,), float(step))}, {"step": step})
    writer.close()


def steps(directory: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(directory)]


@pytest.mark.parametrize("fault", [*FAULTS, folder])
def test_keep_counts_good_ones(tmp_path: Path, fault: Callable[[Path], str]) -> None:
    save(tmp_path, [2, 4, 6], keep=3)
    fault(checkpoint_path(tmp_path, 4))
    save(tmp_path, [8], keep=3)
    assert steps(tmp_path) == ([8, 6, 4, 2] if fault is folder else [8, 6, 2])


def test_one_that_is_damaged_after_it_was_written_does_not_count_either(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 2)
    for step in (2, 4):
        writer.save(step, {"x": torch.ones(3)}, {"step": step})
    writer.join()
    cut(checkpoint_path(tmp_path, 4))
    writer.save(6, {"x": torch.ones(3)}, {"step": 6})
    writer.close()
    assert steps(tmp_path) == [6, 2]


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_checkpoint_of_a_newer_version_is_not_gone_on_over(
    run: Path, tmp_path: Path, resume: tuple[str, ...]
) -> None:
    theirs = checkpoint_path(run / "checkpoints", 8)
    reason = newer(theirs)
    before = contents(run)
    message = refused("train", run / "config.yaml", "training.epochs=4", "--output", run, *resume)
    assert (f"{theirs}: {reason}" if resume else "already contains a run") in message
    assert contents(run) == before
    code, _, err = ssl("export", "backbone", run, "--output", tmp_path / "x.safetensors")
    assert (code, err.count(f"{theirs}: {reason}")) == (0, 1)
    assert reason in refused("export", "backbone", theirs, "--output", tmp_path / "y.safetensors")


def test_nor_deleted_nor_overwritten(tmp_path: Path) -> None:
    save(tmp_path, [2, 4])
    newer(checkpoint_path(tmp_path, 4))
    kept = contents(tmp_path)[checkpoint_path(tmp_path, 4)]
    save(tmp_path, [6, 8, 10])
    assert steps(tmp_path) == [10, 8, 4]
    with pytest.raises(
        SslError, match=r"step-000000004.* is of a newer version, or cannot be read, and is not overwritten"
    ):
        save(tmp_path, [4])
    assert contents(tmp_path)[checkpoint_path(tmp_path, 4)] == kept


def test_one_that_cannot_be_opened_now_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, [2, 4])
    real = checkpoints.read_header

    def denied(path: Path) -> dict[str, Any]:
        if step_of(path) == 2:
            raise files.UnreadableFile(f"{path}: cannot be read (Stale file handle)")
        return real(path)

    monkeypatch.setattr(checkpoints, "read_header", denied)
    save(tmp_path, [6, 8, 10])
    assert steps(tmp_path) == [10, 8, 2]


def test_a_trained_backbone_without_a_checkpoint_is_not_trained_anew(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    assert "has a trained backbone, and no checkpoint to go on from" in refused("train", run, "--resume")
    assert contents(run) == before


def test_a_document_that_is_not_known_is_of_a_newer_version_only_if_one_wrote_it(tmp_path: Path) -> None:
    save(tmp_path, [2])
    path = checkpoint_path(tmp_path, 2)
    assert read_checkpoint(path).step == 2
    newer(path, 1, sslcli="9.1")
    with pytest.raises(files.DamagedFile, match=r"was written by a newer version \(sslcli 9\.1; this is "):
        read_checkpoint(path)
    newer(path, 1, sslcli="0.1.9")
    assert read_checkpoint(path).step == 2


def test_runs_shows_the_step_of_one_that_is_there(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert summarize(run).step == 8
    dangling(checkpoint_path(run / "checkpoints", 8))
    assert summarize(run).step == 4
