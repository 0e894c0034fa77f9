"""The comparisons with other packages: their reports, that recipes are equal, and that each script runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_helpers import BENCHMARKS, Import, benchmark  # noqa: F401  # a fixture
from PIL import Image
from tiny_data import write_folders

# ruff: noqa: F811

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_report_has_medians_ratios_and_no_paths(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    report = benchmark("report")
    words = ["/home/me/photographs", "data.root=/home/me/cifar10", "--count", "8"]
    monkeypatch.setattr(sys, "argv", ["/home/me/benchmarks/views.py", *words])
    found = report.circumstances("no-such-package")
    command = ["python", "benchmarks/views.py", "DIR/photographs", "data.root=DIR/cifar10", "--count", "8"]
    assert found["command"] == command
    assert found["no-such-package"] == "not installed"
    assert "/home/me" not in json.dumps(found)
    speeds = {"eager": report.summary([10.0, 30.0, 20.0]), "lightly": report.summary([8.0, 8.0, 1.0])}
    assert speeds["eager"] == {"median": 20.0, "min": 10.0, "max": 30.0}
    assert report.ratios(speeds, ["eager", "compiled"], ["lightly", "lightly_train"]) == {"eager / lightly": 2.5}
    rounds: list[int] = []
    speeds = report.measure({"way": rounds.append}, {"way": 5}, repeats=3)
    assert rounds == [0, 1, 2, 3]  # the first one does not count
    assert speeds["images_per_second"]["way"]["min"] > 0


def test_warm_up_steps_do_not_count(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    module, now = benchmark("tool_steps"), 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    clock = module.Clock(warm_up=3, steps=5, wait=lambda: None)
    for passed in (100.0, 100.0, 100.0, 2.0, 2.0, 2.0, 2.0):
        now += passed
        clock()
    now += 2.0
    with pytest.raises(module.Enough):
        clock()
    assert clock.seconds == 5 * 2.0


def test_ratios_are_of_the_same_round_and_settings(benchmark: Import) -> None:
    module, made = benchmark("beside_others"), {"precision": "fp32", "channels_last": False, "threads": 2}
    speeds = {
        ("ours", "defaults"): [20.0, 90.0, 40.0],
        ("lightly", "defaults"): [10.0, 30.0, 40.0],
        ("ours", "fp32"): [5.0] * 3,
    }
    found = {each: [{"images_per_second": one, "made": made} for one in values] for each, values in speeds.items()}
    rows = {(row["tool"], row["settings"]): row for row in module.compared(found)}
    assert rows["lightly", "defaults"]["ours_relative"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert "ours_relative" not in rows["ours", "fp32"]


def test_all_tools_have_equal_settings_except_for_the_defaults(benchmark: Import) -> None:
    module, common = benchmark("beside_others"), {"data": "cifar10", "root": Path(), "files": Path(), "width": 4}
    common |= {"batch": 8, "workers": 0, "warm_up": 1, "steps": 1}
    made = module.tasks(module.STEPS, module.SETTINGS, common)
    assert len(made) == len(module.STEPS) * len(module.SETTINGS)
    for name, (precision, channels_last) in {
        "fp32 contiguous": ("fp32", False),
        "bf16 channels_last": ("bf16", True),
    }.items():
        for tool in module.STEPS:
            training = made[tool, name].config().training
            assert (training.precision, training.channels_last) == (precision, channels_last)
            backbone, _ = made[tool, name].network()
            weight = next(p for p in backbone.parameters() if p.ndim == 4)
            assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert {made[tool, "defaults"].config().training.precision for tool in module.STEPS} == {"auto"}


def test_the_page_has_the_tables_of_the_results(benchmark: Import) -> None:
    page, report = benchmark("page"), benchmark("report")
    text, photographs = page.PAGE.read_text(encoding="utf-8"), report.RESULTS / "photographs-cpu.json"
    beside, large = benchmark("beside_others"), benchmark("large_images")
    parts = {
        "photographs": benchmark("photographs").tables(json.loads(photographs.read_text(encoding="utf-8"))),
        "beside": beside.tables(beside.read_reports()),
        "large-images": large.tables(large.read(large.LEDGER)),
    }
    for name, table in parts.items():
        assert page.with_part(text, name, table) == text, f"run the command of the part {name} with --write-docs"


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("package", ["torchvision", "lightly", pytest.param("lightly_train", marks=pytest.mark.slow)])
def test_other_packages_make_views_with_our_parameters(benchmark: Import, package: str, size: int) -> None:
    pytest.importorskip(package)
    others, (_, view) = benchmark("others"), benchmark("views").our_views(size)
    image = np.zeros((50, 40, 3), dtype=np.uint8)
    made = getattr(others, f"{package}_views")(size, view, MEAN, STD)
    views = made(image if package == "lightly_train" else Image.fromarray(image))
    views = [views] * 2 if package == "torchvision" else views
    assert [tuple(each.shape) for each in views] == [(3, size, size)] * 2


def test_a_recipe_that_lightly_cannot_have_is_refused(benchmark: Import) -> None:
    pytest.importorskip("lightly")
    others, (_, view) = benchmark("others"), benchmark("views").our_views(32)
    with pytest.raises(others.RecipeDiffers, match="crop_scale"):
        others.lightly_views(32, {**view, "crop_scale": [0.08, 0.9]}, MEAN, STD)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["ours", "lightly", "lightly_train", "stable_pretraining"])
def test_every_tool_makes_steps_on_photographs(benchmark: Import, tmp_path: Path, tool: str) -> None:
    if tool != "ours" and not benchmark("report").is_installed(tool):
        pytest.skip(f"{tool} is not installed")
    write_folders(tmp_path)
    common = {"data": "photographs", "root": tmp_path / "train", "files": tmp_path / "train", "width": 2, "batch": 4}
    module = benchmark("beside_others")
    wanted = module.tasks([tool], ["fp32 contiguous"], {**common, "workers": 0, "warm_up": 1, "steps": 3})
    ((result,),) = module.measure_rounds(wanted, 1).values()  # 4 steps of 2 in an epoch: into the second one
    assert result["images_per_second"] > 0
    assert result["made"]["channels_last"] is False


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [path.name for path in sorted(BENCHMARKS.glob("*.py")) if "argparse" in path.read_text()]
)
def test_every_script_has_help(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout or "report" in done.stdout or "plot" in done.stdout  # of a ledger


@pytest.mark.slow
def test_views_and_photographs_report_every_way(tmp_path: Path) -> None:
    done = run("views.py", "--repeats", "1", "--batch", "8", "--no-compile")
    assert done.returncode == 0, done.stderr
    speeds = json.loads(done.stdout)["images_per_second"]
    assert set(speeds) == {"eager", "whole_matrices", "torchvision", "lightly", "lightly_train"}
    write_folders(tmp_path)
    done = run("photographs.py", str(tmp_path / "train"), "--size", "32", "--count", "8", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    expected = {"ours", "ours_cached", "ours_whole", "ours_cached_whole", "color", "torchvision", "torchvision_crop"}
    assert expected | {"lightly"} <= set(report["images_per_second"])
    assert report["cache"]["bytes"] > 0


@pytest.mark.slow
def test_a_comparison_without_lightly_or_data_says_what_is_missing(benchmark: Import, tmp_path: Path) -> None:
    done = run("beside_others.py", "cifar10", str(tmp_path), "--tools", "lightly")
    assert done.returncode == 2
    missing = "root: no cifar-10-batches-py" if benchmark("report").is_installed("lightly") else "pip install lightly"
    assert missing in done.stderr
