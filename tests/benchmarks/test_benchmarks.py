"""The benchmarks beside other packages: what they count and report, that recipes are held equal, that each one runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import tiny_root, write_cifar10, write_folders  # noqa: F401  # the first is a fixture

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Returns a function that imports one of the benchmarks' modules; they are gone after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_report_does_not_tell_where_the_data_lie(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/benchmarks/views.py", "/home/me/photographs", "--count", "8"])
    report = benchmark("report").circumstances("no-such-package")
    assert report["command"] == ["python", "benchmarks/views.py", "DIR/photographs", "--count", "8"]
    assert report["no-such-package"] == "not installed"
    assert "/home/me" not in json.dumps(report)


def test_ratios_are_those_of_the_medians_and_of_what_was_measured(benchmark: Any) -> None:
    report = benchmark("report")
    speeds = {"eager": report.summary([10.0, 30.0, 20.0]), "lightly": report.summary([8.0, 8.0, 1.0])}
    assert speeds["eager"] == {"median": 20.0, "min": 10.0, "max": 30.0}
    assert report.ratios(speeds, ["eager", "compiled"], ["lightly", "lightly_train"]) == {"eager / lightly": 2.5}


def test_the_first_round_is_not_counted(benchmark: Any) -> None:
    rounds: list[int] = []
    speeds = benchmark("report").measure({"way": rounds.append}, {"way": 5}, repeats=3)
    assert rounds == [0, 1, 2, 3]
    assert speeds["images_per_second"]["way"]["min"] > 0


def test_steps_that_warm_up_are_made_and_not_counted(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("beside_lightly")
    now = 0.0

    def step() -> None:
        nonlocal now
        now += 2.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    task = module.Task(module.Way("ours"), Path(), width=4, batch=8, workers=0, warm_up=3, steps=5)
    assert module.images_per_second(step, task, torch.device("cpu")) == 8 / 2.0
    assert now == 2.0 * 8


def test_each_pair_has_one_way_of_ours_and_one_of_lightlys_and_equal_settings_but_for_the_defaults(
    benchmark: Any,
) -> None:
    module = benchmark("beside_lightly")
    for name, (ours, theirs) in module.PAIRS.items():
        assert (module.WAYS[ours].tool, module.WAYS[theirs].tool) == ("ours", "lightly")
        equal = module.WAYS[ours].options == module.WAYS[theirs].options
        assert equal is (name != "defaults")


@pytest.mark.parametrize("size", [32, 224])
def test_lightly_makes_views_with_the_parameters_of_ours(benchmark: Any, size: int) -> None:
    pytest.importorskip("lightly")
    _, view = benchmark("views").our_views(size)
    views = benchmark("others").lightly_views(size, view, MEAN, STD)(Image.new("RGB", (40, 50), "red"))
    assert [tuple(each.shape) for each in views] == [(3, size, size)] * 2


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.slow
def test_lightly_train_makes_views_with_the_parameters_of_ours(benchmark: Any, size: int) -> None:
    pytest.importorskip("lightly_train")
    _, view = benchmark("views").our_views(size)
    views = benchmark("others").lightly_train_views(size, view, MEAN, STD)(np.zeros((50, 40, 3), dtype=np.uint8))
    assert [tuple(each.shape) for each in views] == [(3, size, size)] * 2


def test_a_recipe_that_lightly_cannot_have_is_no_comparison(benchmark: Any) -> None:
    pytest.importorskip("lightly")
    others = benchmark("others")
    _, view = benchmark("views").our_views(32)
    with pytest.raises(others.RecipeDiffers, match="crop_scale"):
        others.lightly_views(32, {**view, "crop_scale": [0.08, 0.9]}, MEAN, STD)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["ours", "lightly"])
def test_both_tools_make_steps(benchmark: Any, tiny_root: Path, tool: str) -> None:  # noqa: F811
    if tool == "lightly":
        pytest.importorskip("lightly")
    module = benchmark("beside_lightly")
    write_cifar10(tiny_root)
    options = ("training.precision=bf16", "training.channels_last=true", "training.device=cpu")
    task = module.Task(module.Way(tool, options), tiny_root, width=2, batch=8, workers=0, warm_up=1, steps=13)
    result = module.MEASURES[tool](task)  # 14 steps of 12 in an epoch: into the second one
    assert result["images_per_second"] > 0
    assert (result["made"]["precision"], result["made"]["channels_last"]) == ("bf16", True)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["views.py", "photographs.py", "beside_lightly.py"])
def test_each_says_what_it_is_for(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


@pytest.mark.slow
def test_views_reports_every_way() -> None:
    done = run("views.py", "--repeats", "1", "--batch", "8", "--no-compile")
    assert done.returncode == 0, done.stderr
    speeds = json.loads(done.stdout)["images_per_second"]
    assert set(speeds) == {"eager", "torchvision", "lightly", "lightly_train"}


@pytest.mark.slow
def test_photographs_reports_every_way(tmp_path: Path) -> None:
    write_folders(tmp_path)
    done = run("photographs.py", str(tmp_path / "train"), "--size", "32", "--count", "8", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    expected = {"ours", "ours_cached", "color", "torchvision", "torchvision_crop", "lightly"}
    assert set(report["images_per_second"]) == expected
    assert report["cache"]["bytes"] > 0


@pytest.mark.slow
def test_a_folder_without_cifar_is_named(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    done = run("beside_lightly.py", str(tmp_path))
    assert done.returncode == 2
    assert "DATA_ROOT: no cifar-10-batches-py" in done.stderr


@pytest.mark.slow
def test_without_lightly_it_says_how_to_get_it(benchmark: Any, tmp_path: Path) -> None:
    if benchmark("report").is_installed("lightly"):
        pytest.skip("lightly is installed")
    done = run("beside_lightly.py", str(tmp_path))
    assert done.returncode == 2
    assert "pip install 'sslcli[benchmark]'" in done.stderr
