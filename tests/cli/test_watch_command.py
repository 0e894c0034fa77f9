"""`ssl watch`: a run as its log has it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from run_helpers import done, refused

from sslcli.cli import watch
from sslcli.runs import overview
from sslcli.runs.lock import RunLock
from sslcli.runs.metrics import read_metrics


def log_line(step: int, **values: object) -> str:
    return json.dumps({"step": step, "epoch": step / 100, **values}) + "\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("runs/one")
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("method: {name: byol}\ndata: {name: cifar10}\ntraining: {epochs: 4}\n")
    lines = [log_line(0, knn_top1=0.2, knn_top1_pixels=0.3)]
    for step in range(20, 220, 20):
        lines.append(log_line(step, loss=5 - step / 100, lr=1e-4, images_per_second=512.4, data_wait=0.031, own=2e6))
    lines += [log_line(100, knn_top1=0.5), log_line(200, knn_top1=0.4), '{"step": 220, "lo', "[1]\n", "\xff\n"]
    (path / "metrics.jsonl").write_text("".join(lines), encoding="latin1")
    return path


def test_state_values_and_curves_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")
    out, err = done("watch", run)
    lines = out.splitlines()
    assert lines[0] == "runs/one: byol on cifar10"
    assert lines[1].startswith("step 200 of 400 (50%), crashed, written ")
    assert lines[2] == "epoch 2.0, 512 images/s, waiting 3%, kNN 40.0% (best 50.0%, pixels 30.0%)"
    assert [line.split() for line in lines if "loss" in line or "own" in line] == [
        ["loss", "3", "knn_top1", "0.4"], ["lr", "0.0001", "own", "2e+06"]
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[5:10:4]] == ["4.8", "3"]
    assert max(map(len, lines)) <= 80
    assert err == ""
    assert done("watch")[0] == out  # the newest in runs/


@pytest.mark.parametrize(
    ("columns", "rows", "curves"), [(40, 12, 1), (80, 12, 2), (200, 24, 5), (20, 100, 5), (10, 5, 0), (5, 50, 0)]
)
def test_as_many_curves_as_the_terminal_has_room_for(run: Path, columns: int, rows: int, curves: int) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + log_line(220, another=1))
    lines = watch.frame(run, read_metrics(run / "metrics.jsonl"), columns, rows)
    assert max(map(len, lines)) <= columns
    assert len(lines) <= rows
    assert lines[-1].startswith(f"{5 - curves} mo") == (curves < 5)
    text = "\n".join(lines[:-1])
    assert sum(name in text for name in ("loss 3", "knn_top1", "lr 0.0001", "own", "another")) == curves


def test_a_run_without_a_log_and_what_is_no_run(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert done("watch", run)[0].splitlines()[-1] == "nothing is logged yet"
    Path("folder").mkdir()
    assert "folder: is not a run directory" in refused("watch", "folder")
    assert "nowhere: is not a run directory" in refused("watch", "nowhere")


@pytest.mark.parametrize("value", ["null", '"x"', "[1]", "1" + "0" * 400, "NaN", "Infinity", "true"])
@pytest.mark.parametrize(
    "name", ["knn_top1", "loss", "epoch", "images_per_second", "data_wait", "knn_top1_pixels", "own"]
)
def test_a_value_that_is_no_number_is_left_out(run: Path, name: str, value: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'\n{{"step": 210, "{name}": {value}}}\n{{"step": {"9" * 400}, "loss": 1}}\n')
    assert done("watch", run)[0].startswith("runs/one: byol on cifar10\n")


def test_an_empty_folder_beside_a_run_is_not_the_newest_run(run: Path) -> None:
    Path("runs/new").mkdir()
    assert done("watch")[0].startswith("runs/one: ")


def test_names_are_harmless(run: Path) -> None:
    hostile = Path("runs/a\x1b[31m\nb")
    run.rename(hostile)
    with (hostile / "metrics.jsonl").open("a") as file:
        file.write("\n" + log_line(220, **{"evil\x1b]0;x\x07": 1}))
    out, _ = done("watch", hostile)
    assert "\x1b" not in out
    assert "\x07" not in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_looks_again_until_the_run_ends(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, lock = Terminal(), RunLock(run / ".lock")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        with (run / "metrics.jsonl").open("a") as file:
            file.write("\n" + log_line(220 + 20 * len(waits), loss=1.25))
        if len(waits) == 2:
            lock.close()

    monkeypatch.setattr(watch, "results", lambda: terminal)
    monkeypatch.setattr("time.sleep", wait)
    done("watch", run, "--every", "7")
    assert waits == [7, 7]
    assert "step 260 of" in terminal.getvalue()
    assert not overview.is_running(run)


def test_ctrl_c_ends_watching(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> Any:
        raise KeyboardInterrupt

    lock = RunLock(run / ".lock")
    monkeypatch.setattr(watch, "results", Terminal)
    monkeypatch.setattr("time.sleep", interrupted)
    assert done("watch", run)[1] == "the run goes on\n"
    lock.close()
