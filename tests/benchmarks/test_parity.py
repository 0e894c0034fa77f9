"""`parity.py`: its ledger, its arithmetic, and ten steps of every method beside lightly's."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmark_helpers import ROOT, Import, benchmark  # noqa: F401  # a fixture

# ruff: noqa: F811

MACHINE = {"time": "2026-01-02T03:04:05", "processor": "P", "load_average": 1.0}
MACHINE |= {"torch": "2.14", "lightly": "1.6", "sslcli": "0.2"}
FOUND = {"knn_before": 0.25, "knn": 0.5, "linear": 0.6, "loss_first": 5.0, "loss_last": 4.0}
FOUND |= {"minutes": 2.0, "core_minutes": 3.0, "machine": MACHINE}


class Runs:
    """In place of the processes: the runs that are made; those of `killed` are ended."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str, int]] = []
        self.killed: set[str] = set()

    def __call__(self, script: str, *words: str, **environment: str) -> str:
        run = json.loads(words[words.index("--run") + 1])
        self.made.append((run["tool"], run["method"], run["seed"]))
        if run["method"] in self.killed:
            raise subprocess.CalledProcessError(-9, "parity.py")
        return json.dumps(FOUND)


@pytest.fixture
def parity(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = benchmark("parity")
    monkeypatch.setattr(module, "in_a_process", Runs())
    monkeypatch.setattr(module, "versions", lambda tool: {tool: "1"})
    return module


def asked(ledger: Path, **more: Any) -> argparse.Namespace:
    values = {
        "methods": ["simclr", "dino"],
        "seeds": [0],
        "tools": ["ours", "lightly"],
        "kinds": ["defaults"],
        "jobs": 1,
    }
    return argparse.Namespace(ledger=ledger, root=Path(), images=256, epochs=1, **{**values, **more})


def test_a_run_that_is_in_the_ledger_is_not_made_again_and_a_killed_one_is(parity: Any, tmp_path: Path) -> None:
    ledger, runs = tmp_path / "new" / "parity.jsonl", parity.in_a_process
    runs.killed = {"dino"}
    parity.run_all(asked(ledger))
    assert runs.made == [("ours", "simclr", 0), ("lightly", "simclr", 0), ("ours", "dino", 0), ("lightly", "dino", 0)]
    assert [run["method"] for run in parity.read(ledger)] == ["simclr", "simclr"]
    runs.made, runs.killed = [], set()
    parity.run_all(asked(ledger, jobs=2))
    assert sorted(runs.made) == [("lightly", "dino", 0), ("ours", "dino", 0)]
    runs.made = []
    parity.run_all(asked(ledger, seeds=[0, 1], methods=["dino"]))
    assert runs.made == [("ours", "dino", 1), ("lightly", "dino", 1)]
    assert len(parity.read(ledger)) == 6


def test_other_settings_or_versions_are_another_run(
    parity: Any, benchmark: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, runs = tmp_path / "parity.jsonl", parity.in_a_process
    wanted = asked(ledger, tools=["lightly"], methods=["simclr"])
    parity.run_all(wanted)
    wanted.epochs = 2
    parity.run_all(wanted)
    monkeypatch.setitem(benchmark("parity_settings").SETTINGS["simclr"]["optimizer"], "lr", 0.07)
    parity.run_all(wanted)
    monkeypatch.setattr(parity, "versions", lambda tool: {tool: "2"})
    parity.run_all(wanted)
    assert len(runs.made) == len({parity.key(run) for run in parity.read(ledger)}) == 4
    parity.run_all(wanted)
    assert len(runs.made) == 4


def test_a_line_that_was_not_finished_is_left_out(parity: Any, tmp_path: Path) -> None:
    ledger = tmp_path / "parity.jsonl"
    parity.append(ledger, {"run": 1})
    with ledger.open("a") as file:
        file.write('{"run": 2, "kn')
    assert parity.read(ledger) == [{"run": 1}]
    parity.append(ledger, {"run": 3})
    assert parity.read(ledger) == [{"run": 1}, {"run": 3}]


def test_settings_that_changed_while_the_command_ran_are_not_stored_as_those_before(parity: Any) -> None:
    run = {"tool": "ours", "method": "simclr", "kind": "fp32", "images": 256, "epochs": 1, "settings": "old"}
    with pytest.raises(SystemExit, match="settings have changed"):
        parity.run_one(Path(), run)


def test_lightly_has_no_defaults_of_its_own(parity: Any, tmp_path: Path) -> None:
    planned = list(parity.planned(asked(tmp_path, kinds=["fp32", "defaults"], methods=["simclr"])))
    assert [(run["tool"], run["kind"]) for run in planned] == [
        ("ours", "fp32"), ("ours", "defaults"), ("lightly", "fp32"),
    ]  # fmt: skip


def test_a_difference_has_the_standard_error_of_two_independent_means(benchmark: Import) -> None:
    report = benchmark("parity_report")
    # Variances 1 and 4 of three and four values: √(1/3 + 4/4).
    gap, error = report.difference([1.0, 2.0, 3.0], [-1.0, -1.0, math.sqrt(3) * 2 - 1, -1.0])
    assert gap == pytest.approx(2 - (-1 + math.sqrt(3) / 2))
    assert error == pytest.approx(math.sqrt(1 / 3 + 3 / 4))
    assert math.isnan(report.difference([1.0], [0.0, 1.0])[1])


def runs_of(tool: str, knn: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    kind, settings = ("defaults", "d") if tool == "ours" else ("fp32", "s")
    shared = {"tool": tool, "method": "simclr", "kind": kind, "settings": settings, **FOUND, **more}
    return [{**shared, "seed": seed, "knn": value} for seed, value in enumerate(knn)]


def test_the_table_has_means_spreads_and_what_is_beyond_two_standard_errors(benchmark: Import) -> None:
    tables, digests = benchmark("parity_report").tables, {("simclr", "fp32"): "s", ("simclr", "defaults"): "d"}
    runs = [*runs_of("ours", [0.50, 0.52, 0.54]), *runs_of("lightly", [0.40, 0.41, 0.42], minutes=6.0)]
    text = tables(runs, digests)
    # √(2²/3 + 1²/3) = 1.29
    assert "| `simclr` | 3, 3 | 52.0 ± 2.0 | 41.0 ± 1.0 | +11.0 ± 1.3 | 60.0 ± 0.0 | 60.0 ± 0.0 | +0.0 ± 0.0 |" in text
    assert "| `simclr` | 25.0 ± 0.0 | 5 → 4 | 5 → 4 | 2.0 | 6.0 | 3.0 | 3.0 |" in text
    assert "Beyond two standard errors: kNN of `simclr` (above lightly's).\n" in text
    assert "both in fp32" not in text
    near = [*runs_of("ours", [0.38, 0.40, 0.42]), *runs_of("lightly", [0.40, 0.42, 0.44])]
    assert "−2.0 ± 1.6" in tables(near, digests)
    assert "Beyond two standard errors: no difference." in tables(near, digests)
    # Of other settings, or of one tool alone: not in it.
    assert "No method has runs" in tables(runs_of("ours", [0.5]) + runs_of("lightly", [0.5], settings="old"), digests)
    alike = runs_of("ours", [0.45], kind="fp32", settings="s", core_minutes=1.5)
    assert "| `simclr` | 45.0 | 41.0 ± 1.0 | 1.5 | 3.0 |" in tables(runs + alike, digests)


def test_the_configs_of_all_methods_have_what_both_tools_are_given(benchmark: Import, tmp_path: Path) -> None:
    settings = benchmark("parity_settings")
    for method in settings.METHODS:
        config = settings.resolved(method, "fp32", 1280, 3, tmp_path, seed=7)
        assert (config.seed, config.data.options.limit, config.training.epochs) == (7, 1280, 3)
        assert (config.method.name, config.optimizer.options.scale_lr, config.callbacks) == (method, "none", {})
        crops = [dict(each.options) for view in config.views for each in view.operations if each.name == "crop"]
        assert {crop["interpolation"] for crop in crops} == {"bicubic" if method == "dino" else "bilinear"}
        schedule = config.schedule.cls(config.schedule.options, 1.0, 30, 10)
        assert [schedule(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "byol", "simsiam", "moco_v2", "swav", "dino", "barlow_twins", "vicreg"])
def test_ten_steps_are_those_of_lightly(benchmark: Import, method: str) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed: pip install 'sslcli[benchmark]'")
    found = benchmark("parity_steps").compare(method)
    assert found["steps"] == 10
    assert found["moved"] > 0.01
    assert found["loss"] < 1e-8
    assert found["weights"] < 1e-8


@pytest.mark.slow
def test_a_difference_of_one_setting_is_seen_in_the_steps(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed: pip install 'sslcli[benchmark]'")
    lightly, steps = benchmark("parity_lightly"), benchmark("parity_steps")

    class Slower(lightly.CLASSES["byol"]):  # type: ignore[misc]
        def follow(self, step: int) -> None:
            super().follow(step - 1 if step else 0)

    monkeypatch.setitem(lightly.CLASSES, "byol", Slower)
    assert steps.compare("byol")["loss"] > 1e-6


def test_the_page_has_room_for_both_tables(benchmark: Import) -> None:
    page, text = benchmark("page"), (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    for part in ("parity", "parity-steps"):
        assert "a table" in page.with_part(text, part, "a table")
