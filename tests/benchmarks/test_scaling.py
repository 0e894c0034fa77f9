"""The scaling benchmark: the points of its axes, how an exponent is fitted, and its plots."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmark_helpers import ROOT, Import, benchmark  # noqa: F401  # a fixture
from PIL import Image

# ruff: noqa: F811


@pytest.fixture
def scaling(benchmark: Import) -> Any:
    return benchmark("scaling")


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(scaling: Any, power: float) -> None:
    assert scaling.exponent({n: 0.3 * n**power for n in (2, 3, 5, 8)}) == pytest.approx(power)


def test_a_summary_has_medians_and_the_last_exponent(scaling: Any) -> None:
    found = scaling.summarize({1: [5.0, 1.0, 1.0], 2: [2.0, 2.0, 2.0], 4: [8.0, 7.0, 9.0]})
    assert found["points"][0] == {"value": 1, "median": 1.0, "min": 1.0, "max": 5.0}
    assert found["last_exponent"] == 2
    assert found["exponent"] == 1.5


def test_each_axis_changes_only_its_own_value(scaling: Any, tmp_path: Path) -> None:
    base = scaling.config_at("batch", 64).plain()
    for axis, (section, key) in {"images": ("data", "count"), "batch": ("training", "batch_size")}.items():
        changed = scaling.config_at(axis, 128).plain()
        assert changed[section].pop(key) == 128
        assert changed == {**base, section: {name: value for name, value in base[section].items() if name != key}}
    views = scaling.config_at("views", 6)
    assert [view.count for view in views.views] == [6]
    assert {**views.plain(), "views": base["views"]} == base
    large = scaling.config_at("size", 128)
    assert large.data.options.size == 128
    (view,) = large.views
    assert view.size == 128
    # No blur and no stronger jitter above 64 px, which would be another recipe.
    assert view.operations == scaling.config_at("size", 32).views[0].operations
    workers = scaling.config_at("workers", 3, tmp_path)
    assert (workers.training.workers, workers.data.options.root) == (3, tmp_path)


def test_a_turn_makes_the_requested_steps_in_every_series(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling.BASE, "data", {"name": "shapes", "count": 32, "size": 16})
    monkeypatch.setitem(scaling.BASE, "backbone", {"name": "resnet18", "stem": "small", "width": 2})
    axes = {
        "images": scaling.Axis("images", (16, 32), ("data.count={}", "training.batch_size=8"), "epoch"),
        "batch": scaling.Axis("batch", (4, 8), ("training.batch_size={}",), "step", ("steps", "batches alone")),
    }
    monkeypatch.setattr(scaling, "AXES", axes)
    session = scaling.build(scaling.config_at("images", 16))
    made: list[int] = []
    step = scaling.Loop.step
    monkeypatch.setattr(scaling.Loop, "step", lambda loop: (made.append(1), step(loop)))
    turn = scaling.turns(session, "steps", 2, 0.0)
    made.clear()
    assert turn() > 0
    assert len(made) == 2
    found = scaling.measure("batch", 2, 0.001, None)
    assert list(found["series"]) == ["steps", "batches alone"]
    for series in found["series"].values():
        assert [point["value"] for point in series["points"]] == [4, 8]
        assert all(0 < point["min"] <= point["median"] <= point["max"] for point in series["points"])


def test_photographs_are_written_as_jpeg_files(scaling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PHOTOGRAPHS", 2)
    scaling.write_photographs(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["0000.jpg", "0001.jpg"]
    with Image.open(files[0]) as image:
        assert (image.format, image.size) == ("JPEG", (scaling.SIDE, scaling.SIDE))


def test_the_same_results_give_the_same_plots(scaling: Any, tmp_path: Path) -> None:
    times = {n: [0.1 * n, 0.1 * n * math.sqrt(2)] for n in (16, 32, 64)}
    entry = {"label": "batch size", "seconds_of": "step", "rounds": 2, "series": {"steps": scaling.summarize(times)}}
    (first,) = scaling.draw({"axes": {"batch": entry}}, tmp_path / "a")
    (second,) = scaling.draw({"axes": {"batch": entry}}, tmp_path / "b")
    assert first.name == "scaling-batch.svg"
    assert first.read_bytes() == second.read_bytes()
    assert "exponent 1.00" in first.read_text(encoding="utf-8")


def test_the_page_shows_the_stored_result_and_its_plots_exist(scaling: Any, benchmark: Import) -> None:
    page = benchmark("page")
    report = json.loads((ROOT / "benchmarks/results/scaling-cpu.json").read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    again = "run `python benchmarks/scaling.py --plot-only --output scaling-cpu --write-docs`"
    assert page.with_part(text, "scaling", scaling.markdown(report)) == text, again
    for axis in report["axes"]:
        assert (page.PAGE.parent / f"performance/scaling-{axis}.svg").is_file()


@pytest.mark.parametrize("arguments", [["sizes"], ["--plot-only"]])
def test_a_wrong_call_is_refused_before_anything_is_measured(
    scaling: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["scaling.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        scaling.main()
    assert stopped.value.code == 2
    assert "choose from images" in capsys.readouterr().err or arguments == ["--plot-only"]
