"""Checks of callbacks, in short runs where nothing else happens."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sslcli.contracts.callback import Callback, Outcome

from .common import check_options, reported, require, require_is, require_same, require_savable, snapshot
from .stand_ins import WatchedRun


def check_callback(cls: type[Callback], options: Mapping[str, Any] | None = None) -> None:
    """Checks that a callback works in every kind of run, does not change the encoder, and restores its state.

    Args:
        options: plain data with which it acts within 6 steps and 2 epochs.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label = check_options(cls, options), cls.__name__
    with tempfile.TemporaryDirectory() as folder:
        run = WatchedRun(Path(folder))
        before, watched = snapshot(run.encoder()), cls(parsed)
        _go(watched, run, 0, 6, "done")
        require_same(before, snapshot(run.encoder()), f"{label} changes {{}} of the encoder")
        same = all(module.training for module in run.encoder().modules())
        require(same, f"{label} leaves the encoder in another mode; restore `training` of each module")
        _check_state(cls, parsed, watched)
        _go(cls(parsed), WatchedRun(Path(folder), labels=False), 0, 6, "done")
    with tempfile.TemporaryDirectory() as folder:
        _go(cls(parsed), WatchedRun(Path(folder), is_main=False), 0, 6, "done")
        written = sorted(path.name for path in Path(folder).iterdir())
        require(not written, f"{label} writes {written[:1]} in a process that is not the main one")
        resumed = cls(parsed)
        resumed.load_state_dict(watched.state_dict())
        _go(resumed, WatchedRun(Path(folder)), 3, 6, "interrupted")
        # If another callback's on_start fails, on_end is called without on_start.
        with reported(f"{label}.on_end fails in a run that ends before on_start"):
            cls(parsed).on_end(WatchedRun(Path(folder)), "failed")


def _go(callback: Callback, run: WatchedRun, first: int, last: int, outcome: Outcome) -> None:
    """Calls the hooks in the loop's order."""
    with reported(f"{type(callback).__name__} ends a run (main process: {run.is_main})"):
        callback.on_start(run.at(first))
        for step in range(first + 1, last + 1):
            run.at(step)
            callback.on_step(run)
            if step == first + 1:
                callback.on_first_step(run)
            if run.is_main:
                record = {
                    "step": step, "epoch": run.progress.epoch, "loss": 1.0, "lr": 0.1, "images_per_second": 100.0,
                    "data_wait": 0.0, "feature_std": 0.5, "feature_rank": 4.0, **callback.on_record(run),
                }  # fmt: skip
                callback.on_log(run, record)
            if step % run.progress.steps_per_epoch == 0:
                callback.on_epoch(run)
        if run.is_main:
            callback.on_log(run, {"step": last, "epoch": run.progress.epoch, "another_callbacks": 1.0})
        callback.on_end(run, outcome)


def _check_state(cls: type[Callback], options: Any, watched: Callback) -> None:
    label, state = cls.__name__, watched.state_dict()
    tensors = require_savable(label, state)
    fresh = cls(options)
    fresh.load_state_dict(state)
    again = fresh.state_dict()
    require_is(f"{label}: its state after load_state_dict", sorted(again), sorted(state))
    restored = {key: value for key, value in again.items() if isinstance(value, Tensor)}
    require_same(tensors, restored, f"{label}: load_state_dict does not restore {{}}")
    for key in state.keys() - tensors.keys():
        require(state[key] == again[key], f"{label}: load_state_dict does not restore {key!r}")
