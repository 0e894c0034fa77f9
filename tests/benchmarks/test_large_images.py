"""Pre-training on photographs: which runs are made, what is held out, and the table's arithmetic."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_helpers import Import, benchmark  # noqa: F401  # a fixture
from tiny_data import tiny_root, write_cifar10, write_folders  # noqa: F401  # the first is a fixture

# ruff: noqa: F811


OURS = {name: importlib.metadata.version(name) for name in ("sslcli", "torch")}


def run_of(
    settings: dict[str, Any], start: str, seed: int, knn: tuple[float, float], part: str = "test"
) -> dict[str, Any]:
    before, after = ({"knn": value, "linear": value / 2} for value in knn)
    machine = {"time": "now", "processor": "a CPU", "torch": "2"}
    named = {"start": start, "seed": seed, "part": part, "settings": settings, "weights": None, "versions": OURS}
    return {**named, "pixels": {"knn": 0.2}, "before": before, "after": after, "minutes": 3.0, "machine": machine}


def test_the_table_has_means_spreads_and_paired_gains_of_the_present_settings(benchmark: Import) -> None:
    module = benchmark("large_images")
    runs = [
        run_of(module.SETTINGS, "scratch", 0, (0.10, 0.30)),
        run_of(module.SETTINGS, "scratch", 1, (0.14, 0.28)),
        run_of(module.SETTINGS, "scratch", 100, (0.0, 1.0), part="held-out"),
        run_of({**module.SETTINGS, "training.epochs": 1}, "scratch", 2, (0.0, 1.0)),
    ]
    text = module.tables(runs)
    assert "| raw pixels | 20.0 | – |" in text
    assert "| random weights | 12.0 ± 2.8 | 6.0 ± 1.4 |" in text
    assert "| random weights, after pre-training | 29.0 ± 1.4 | 14.5 ± 0.7 |" in text
    assert "| gain, with its standard error | +17.0 ± 3.0 | +8.5 ± 1.5 |" in text  # of 20 and 14: 4.24 / √2
    assert "seeds 0, 1:" in text
    assert "published" not in text


def test_a_quarter_of_each_class_is_held_out(benchmark: Import, tmp_path: Path) -> None:
    write_folders(tmp_path / "photographs")
    folder = benchmark("large_images").held_out(tmp_path / "photographs", tmp_path / "work")
    assert folder == benchmark("large_images").held_out(tmp_path / "photographs", tmp_path / "work")
    parts = {
        part: sorted(str(f.relative_to(folder / part)) for f in folder.glob(f"{part}/*/*")) for part in ("train", "val")
    }
    assert parts["val"] == ["cat/0.png", "dog/0.png"]
    assert parts["train"] == [f"{name}/{number}.png" for name in ("cat", "dog") for number in (1, 2, 3)]


def test_runs_that_are_in_the_ledger_are_skipped_and_a_part_of_a_line_is_not_one(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, ledger, asked = benchmark("large_images"), tmp_path / "ledger.jsonl", []
    done = run_of(module.SETTINGS, "scratch", 0, (0.1, 0.2))
    ledger.write_text(json.dumps(done) + "\n" + json.dumps(run_of(module.SETTINGS, "scratch", 1, (0.1, 0.2)))[:-9])

    def one(script: str, *words: str, **environment: str) -> str:
        asked.append(json.loads(words[words.index("--run") + 1]))
        return json.dumps({name: done[name] for name in ("pixels", "before", "after", "minutes", "machine")})

    monkeypatch.setattr(module, "in_a_process", one)
    words = [
        "run",
        str(tmp_path),
        "--starts",
        "scratch",
        "--seeds",
        "0",
        "1",
        "--ledger",
        str(ledger),
        "--work",
        str(tmp_path),
    ]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["large_images.py", *words])
        module.main()
    assert [run["seed"] for run in asked] == [1]
    assert [run["seed"] for run in module.read(ledger)] == [0, 1]


@pytest.mark.slow
def test_a_run_trains_and_evaluates_from_weights_that_it_made(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_root: Path
) -> None:
    module = benchmark("large_images")
    write_folders(tmp_path / "photographs")
    write_cifar10(tiny_root)
    tiny = {
        "backbone.width": 2,
        "views.size": 32,
        "training.epochs": 2,
        "training.batch_size": 4,
        "schedule.warmup_epochs": 0,
    }
    monkeypatch.setattr(module, "PUBLISHED", {**module.PUBLISHED, **tiny, "data.limit": None})
    weights = module.published(tiny_root, tmp_path)
    run = {"start": "published", "seed": 0, "part": "test", "settings": {**module.SETTINGS, **tiny}}
    for _ in range(2):  # the second time the run is there
        found = module.run_one(run, tmp_path / "photographs", weights, tmp_path / "run")
    assert set(found["before"]) == set(found["after"]) == {"knn", "linear"}
    assert 0 <= found["pixels"]["knn"] <= 1
