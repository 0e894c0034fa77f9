"""`ssl runs`: a line for each run, whatever is in its directory, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cli_helpers import folder, run, trained  # noqa: F401  # fixtures
from run_helpers import done, refused, ssl

# ruff: noqa: F811


def test_runs_lists_the_one_that_was_written_last_at_the_end(run: Path, folder: Path) -> None:
    (folder / "runs").mkdir()
    run.rename(folder / "runs" / "first")
    again = ["training.max_steps=1", "callbacks={knn: {every_epochs: 1}}", "--output", "runs/second"]
    done("train", "c.yaml", *again)
    out, _ = done("runs")
    header, first, second = (line.split() for line in out.splitlines())
    assert header == ["run", "method", "data", "step", "kNN", "written", "state"]
    assert first[:7] == ["runs/first", "simclr", "shapes", "3", "of", "3", "–"]
    assert second[:6] == ["runs/second", "simclr", "shapes", "1", "of", "1"]
    assert second[6].endswith("%")
    assert first[-1] == second[-1] == "done"
    as_json = json.loads(done("runs", "--json")[0])
    assert [(each["path"], each["state"]) for each in as_json] == [("runs/first", "done"), ("runs/second", "done")]
    assert set(as_json[0]) == {"path", "method", "data", "step", "steps", "knn", "time", "state", "error"}
    assert 0 <= as_json[1]["knn"] <= 1
    assert done("runs", "runs/first")[0].splitlines()[1].split() == first


def test_a_failed_run_says_so(folder: Path, odd_plugins: Path) -> None:
    code, _, err = ssl("train", "c.yaml", "method={name: simclr, temperature: 1.0e-30}", "--output", "runs/bad")
    assert code == 1, err
    (failed,) = json.loads(done("runs", "--json")[0])
    assert failed["state"] == "failed"
    assert failed["error"] in err


def test_no_runs_is_no_error_and_no_folder_is_one(folder: Path) -> None:
    assert done("runs") == ("", f"no runs in {folder / 'runs'}; `ssl train` starts one\n")
    assert done("runs", "--json")[0] == "[]\n"
    assert refused("runs", "gone") == "ssl: gone: no such folder"


def test_names_with_control_characters_are_harmless(folder: Path) -> None:
    strange = folder / "runs" / "a\x1b[31m\nb"
    strange.mkdir(parents=True)
    (strange / "config.yaml").write_bytes(b"method: {name: \x1b]0;x\x07}\ndata: [")
    os.mkdir(os.fsencode(folder / "runs") + b"/\xff")
    out, _ = done("runs")
    assert len(out.splitlines()) == 3
    assert not set(out) & set("\x1b\x07")
    assert len(json.loads(done("runs", "--json")[0])) == 2


def test_runs_does_not_import_torch(folder: Path) -> None:
    (folder / "runs" / "a" / "checkpoints").mkdir(parents=True)
    code = "import sys; from sslcli.cli.main import app; app(['runs'], standalone_mode=False); print(*sys.modules)"
    done_ = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done_.returncode == 0, done_.stderr
    assert "runs/a" in done_.stdout
    assert not {"torch", "torchvision", "numpy"} & set(done_.stdout.split())
