"""`curve.py`: what counts as training, and which runs are drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_helpers import Import, benchmark  # noqa: F401  # a fixture

# ruff: noqa: F811


def line(curve: Any, tool: str, accuracy: float, **changes: Any) -> str:
    found = {"minutes": {"0": 0.0, "2": 10.0}, "knn": {"0": 0.25, "2": accuracy}, "linear": 0.5}
    found["machine"] = {"processor": "P", "cpu_threads": 2, "torch": "2.14"}
    run = {"tool": tool, "seed": 0, "settings": curve.digest(20), "changed": {}, "held_out": 0, **found}
    return json.dumps({**run, **changes}) + "\n"


def test_the_time_that_saving_takes_is_not_of_training(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    curve = benchmark("curve")
    now = [0.0]
    monkeypatch.setattr(curve.time, "perf_counter", lambda: now[0])

    def save(path: Path, backbone: str) -> None:
        now[0] += 600
        path.write_text(backbone)

    kept = curve.Backbones(tmp_path, save)
    kept.keep(0, "untrained")
    now[0] += 120
    kept.keep(2, "trained")
    assert kept.minutes == {0: 0.0, 2: 2.0}
    assert (tmp_path / "2.safetensors").read_text() == "trained"


def test_the_newest_run_of_each_tool_with_the_present_settings_is_drawn(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    curve = benchmark("curve")
    ledger, output = tmp_path / "curve.jsonl", tmp_path / "curve.svg"
    ledger.write_text(
        line(curve, "ours", 0.41)
        + line(curve, "lightly", 0.52)
        + line(curve, "ours", 0.63)
        + line(curve, "ours", 0.74, changed={"optimizer.lr": "1"})
        + line(curve, "ours", 0.85, held_out=5000)
        + line(curve, "lightly", 0.96, settings="others")
    )
    monkeypatch.setattr(sys, "argv", ["curve.py", "plot", "--ledger", str(ledger), "--output", str(output)])
    curve.main()
    text = output.read_text()
    assert "ssl: 63.0% after 10 min" in text
    assert "lightly: 52.0% after 10 min" in text


def test_a_tool_without_a_run_is_named(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = benchmark("curve")
    ledger = tmp_path / "curve.jsonl"
    ledger.write_text(line(curve, "ours", 0.5))
    monkeypatch.setattr(
        sys, "argv", ["curve.py", "plot", "--ledger", str(ledger), "--output", str(tmp_path / "none.svg")]
    )
    with pytest.raises(SystemExit, match="2"):
        curve.main()
    assert "no run of lightly with the present settings" in capsys.readouterr().err
    assert not (tmp_path / "none.svg").exists()
