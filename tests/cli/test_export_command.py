"""`ssl export`: the file, the printed code, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import folder, left_behind, run, trained  # noqa: F401  # fixtures
from run_helpers import done, refused

# ruff: noqa: F811


def test_export_writes_a_file_and_prints_code_that_loads_it(run: Path) -> None:
    out, err = done("export", "backbone", run, "--output", "my net.safetensors")
    space: dict[str, torch.nn.Module] = {}
    exec(out, space)
    assert isinstance(space["model"], torch.nn.Module)
    assert "wrote my net.safetensors (" in err


def test_export_replaces_a_file_only_with_force(run: Path, folder: Path) -> None:
    (folder / "x.safetensors").write_text("mine")
    assert "already exists" in refused("export", "backbone", run, "--output", "x.safetensors")
    assert (folder / "x.safetensors").read_text() == "mine"
    done("export", "backbone", run, "--output", "x.safetensors", "--force")
    assert (folder / "x.safetensors").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backbone", "run", "--output", "no/such/x.safetensors"], "no/such/x.safetensors: the directory no/such "),
        (["backbone", "run", "--output", "run"], "run: is a directory; --output "),
        (["backbone", "run", "--output", "c.yaml/x"], "c.yaml/x: the directory c.yaml does not exist"),
        (["backbon", "run"], "unknown exporter 'backbon'; did you mean backbone?"),
        (["backbone", "gone"], "gone: no such run or file"),
        (["backbone", "."], ".: is not a run directory"),
        (["backbone", "run", "dtypee=3", "--output", "x"], "command line: dtypee: unknown option of 'backbone'"),
    ],
)  # fmt: skip
def test_a_wrong_export_is_one_line(run: Path, folder: Path, arguments: list[str], message: str) -> None:
    before = left_behind(folder)
    assert refused("export", *arguments).startswith(f"ssl: {message}")
    assert left_behind(folder) == before


@pytest.mark.slow
def test_a_backbone_of_a_plugin_file_is_evaluated_and_exported_with_the_file(folder: Path) -> None:
    """In processes of their own: none has registered the file before."""
    plugin = Path(__file__).parents[1] / "odd_plugins.py"

    def in_a_process(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sslcli", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)

    small = ["data.count=32", "training.epochs=1", "training.batch_size=8", "training.device=cpu", "callbacks.knn=null"]
    small += ["schedule.name=cosine", "schedule.warmup_epochs=0", "training.compile=none"]
    config = "method: simclr\nbackbone: dropping\ndata: {name: shapes, size: 16}\n"
    (folder / "odd.yaml").write_text(config)
    trained = in_a_process("train", "odd.yaml", *small, "--output", "odd", "--plugin", str(plugin))
    assert trained.returncode == 0, trained.stderr
    without = in_a_process("eval", "odd")
    assert without.returncode == 2
    assert "--plugin" in without.stderr
    for words in (["eval", "odd"], ["export", "backbone", "odd", "--output", "net.safetensors"]):
        done = in_a_process(*words, "--plugin", str(plugin))
        assert done.returncode == 0, done.stderr
    assert (folder / "net.safetensors").exists()
