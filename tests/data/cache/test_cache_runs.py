"""Runs that train from a cache: what is stored of it, what a resumed run does, several processes."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cache_helpers import messages, write
from conftest import TINY

from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import SslError, UserError
from sslcli.data.cache import dataset as cached
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.training.resume import check
from sslcli.training.setup import build
from sslcli.training.train import train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(16):
        write(tmp_path / "photographs" / f"class{number % 2}" / f"{number}.jpg", 30 + number, 24, number)
    return tmp_path / "photographs"


def data(root: Path, **changes: object) -> str:
    options = {"name": "folder", "root": str(root), "cache_dir": str(root.parent / "cache"), **changes}
    return f"data={yaml.safe_dump(options, default_flow_style=True, width=10**6).strip()}"


@pytest.fixture
def config(tiny, root):
    def make(*overrides: str, **changes: object) -> RunConfig:
        return tiny(data(root, **changes), "views.size=16", "training.workers=1", *overrides)

    return make


def silent(text: str) -> None:
    """What the loop says."""


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(list_checkpoints(run / "checkpoints")[0]).tensors


def assert_same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_run_from_a_cache_is_bitwise_the_run_without(config, tmp_path, kind, caplog):
    caplog.set_level(logging.INFO, "sslcli")
    train(config(), tmp_path / "without", tell=silent)
    train(config(cache=kind), tmp_path / kind, tell=silent)
    assert_same(tmp_path / "without", tmp_path / kind)
    lines = messages(caplog)
    assert "training.workers: 1 worker process will crop the cached images" in lines
    assert sum("decoding 16 images" in line for line in lines) == 1


def test_auto_is_stored_as_what_it_was_and_kept_by_a_resumed_run(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cached, "available_memory", lambda: 0)
    auto = config(cache="auto")
    train(dataclasses.replace(auto, training=auto.training.model_copy(update={"max_steps": 5})), tmp_path / "run",
          tell=silent)  # fmt: skip
    stored = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[0]).document["config"]
    assert stored["data"]["cache"] == "disk"
    monkeypatch.setattr(cached, "available_memory", lambda: 10**9)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    caplog.set_level(logging.INFO, "sslcli")
    told: list[str] = []
    train(auto, tmp_path / "run", resume=True, tell=told.append)
    assert any(f" in {tmp_path / 'cache'}" in line for line in messages(caplog))
    assert not any("resuming with" in line for line in [*told, *messages(caplog)])
    train(config(), tmp_path / "whole", tell=silent)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_another_cache_is_reported_when_a_run_is_resumed(config, tmp_path):
    train(config("training.max_steps=3"), tmp_path / "run", tell=silent)
    stored = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[0]).document["config"]
    assert check(config("training.max_steps=3", cache="disk", cache_size=20), stored, "run") == [
        "resuming with data.cache: 'none' in the run, 'disk' now",
        "resuming with data.cache_size: 256 in the run, 20 now",
    ]


def test_a_plan_writes_no_cache_and_monitors_read_the_files_themselves(config, root):
    session = build(config(cache="disk"), compiled=False)
    session.source.close()
    assert type(session.dataset) is Folder
    assert not (root.parent / "cache").exists()


@pytest.mark.parametrize(("option", "free"), [("cache", 100), ("cache_dir", 10**9)])
def test_a_cache_that_cannot_be_written_leaves_no_run_behind(config, tmp_path, monkeypatch, option, free):
    monkeypatch.setattr(cached, "free_disk", lambda folder: free)
    if option == "cache_dir":
        (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=rf"^data\.{option}: "):
        train(config(cache="disk"), tmp_path / "run", tell=silent)
    assert not (tmp_path / "run").exists()


def test_unreadable_images_end_a_run_from_a_cache_as_any_other(config, root, tmp_path):
    (root / "class0" / "0.jpg").write_text("no image")
    lines = []
    for kind in ("none", "disk"):
        with pytest.raises(SslError, match=r"cannot be read, more than data\.max_unreadable") as caught:
            train(config(cache=kind, max_unreadable=0.0), tmp_path / kind, tell=silent)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]


def two_processes(folder: Path, output: str, **options: object) -> subprocess.CompletedProcess[str]:
    text = {**TINY, "views": {"size": 16}, "data": {"name": "folder", **options}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(text))
    words = ["train", "tiny.yaml", "--devices", "2", "--output", output, "training.workers=1"]
    return subprocess.run(
        [sys.executable, "-m", "sslcli", *words], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_two_processes_run_from_one_cache_as_without(root: Path, tmp_path: Path, kind: str) -> None:
    for cache in ("none", kind):
        done = two_processes(tmp_path, cache, root=str(root), cache=cache, cache_dir=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "none", tmp_path / kind)


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_both_with_one_line(root: Path, tmp_path: Path) -> None:
    options = {"root": str(root), "cache": "disk", "cache_dir": str(tmp_path / "cache")}
    path = cached.CachedDataset(Folder(FolderOptions.parse(options)), 66, "disk", 0).path
    path.with_suffix(".lock").mkdir(parents=True)
    done = two_processes(tmp_path, "run", **options)
    assert done.returncode == 2
    line = f"ssl: data.cache_dir: cannot use {tmp_path / 'cache'} (Is a directory); set it to another folder"
    assert line in done.stderr.splitlines()
    assert not (tmp_path / "run").exists()
