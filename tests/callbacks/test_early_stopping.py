"""A run ends when a value stays as it is, is saved, and can be resumed; any callback may end one."""

from __future__ import annotations

from typing import Any

import pytest
from run_helpers import assert_same_end, newest

from sslcli.callbacks.early_stopping import EarlyStopping
from sslcli.runs.metrics import read_metrics
from sslcli.testing.stand_ins import WatchedRun
from sslcli.training.train import train


def watched(values: list[float], tmp_path: Any, **options: Any) -> tuple[EarlyStopping, WatchedRun, int]:
    """Logs values until the run is to stop; returns after how many."""
    callback, run = EarlyStopping(EarlyStopping.Options.parse(options)), WatchedRun(tmp_path)
    for count, value in enumerate(values, start=1):
        callback.on_log(run, {"step": count, "epoch": 0.0, "other": -value})
        callback.on_log(run, {"step": count, "epoch": 0.0, "knn_top1": value})
        if run.stop_reason is not None:
            return callback, run, count
    return callback, run, 0


@pytest.mark.parametrize(
    ("values", "options", "count"),
    [
        ([0.1, 0.3, 0.3, 0.2, 0.3], {"patience": 3}, 5),
        ([0.1, 0.3, 0.2, 0.31, 0.2, 0.2], {"patience": 3}, 0),
        ([0.1, 0.11, 0.12, 0.13], {"patience": 2, "min_delta": 0.05}, 3),
        ([3.0, 2.0, 2.5, 2.0], {"patience": 2, "mode": "min"}, 4),
        ([3.0, 2.0, 1.0], {"patience": 1, "mode": "min"}, 0),
        ([1.0, 2.0], {"patience": 1, "metric": "other"}, 2),
        ([1.0, 1.0, 1.0], {"patience": 1, "metric": "another"}, 0),
    ],
)
def test_it_waits_for_as_many_measurements(values: list[float], options: Any, count: int, tmp_path: Any) -> None:
    callback, run, stopped = watched(values, tmp_path, **options)
    assert stopped == count
    if options == {"patience": 3} and count:
        assert (callback.best, run.stop_reason) == (0.3, "knn_top1 has not risen above 0.3 for 3 measurements")


def test_its_count_goes_on_in_a_resumed_run(tmp_path: Any) -> None:
    callback, run, _ = watched([0.5, 0.4, 0.4], tmp_path, patience=3)
    fresh = EarlyStopping(callback.options)
    fresh.load_state_dict(callback.state_dict())
    fresh.on_log(run, {"knn_top1": 0.5})
    assert run.stop_reason is not None


def test_a_run_that_is_ended_is_saved_with_its_backbone_and_can_be_resumed(
    tiny: Any, tmp_path: Any, messages: list[str]
) -> None:
    stopping = "callbacks.early_stopping={metric: lr, mode: max, patience: 1}"  # the rate falls after the warm-up
    result = train(tiny(stopping), tmp_path / "parts")
    assert result.signal is None
    assert result.stopped is not None
    assert result.stopped.startswith("lr has not risen above 0.04")
    assert result.stopped.endswith(" for 1 measurement")
    assert 4 < result.step < 12
    assert messages[-1] == f"ended at step {result.step} of 12: {result.stopped}"
    assert newest(tmp_path / "parts").step == result.step
    assert (tmp_path / "parts/backbone.safetensors").exists()
    assert read_metrics(tmp_path / "parts/metrics.jsonl")[-1]["step"] == result.step
    train(tiny("callbacks.early_stopping=null"), tmp_path / "parts", resume=True)
    train(tiny(), tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
