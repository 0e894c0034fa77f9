"""The learning rate and weight decay with which the optimizer steps in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslcli.config.resolve import RunConfig
from sslcli.runs.metrics import read_metrics
from sslcli.training.loop import Loop
from sslcli.training.train import train

Groups = list[dict[str, Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Groups]:
    """Collects the optimizer's groups at each of its steps."""
    steps: list[Groups] = []
    update = Loop._update

    def spy(loop: Loop) -> None:
        kept = ("name", "excluded", "lr", "weight_decay")
        steps.append([{key: group[key] for key in kept} for group in loop.optimizer.param_groups])
        update(loop)

    monkeypatch.setattr(Loop, "_update", spy)
    return steps


def run(config: RunConfig, output: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    train(config, output, resume=resume, tell=lambda text: None)
    return read_metrics(output / "metrics.jsonl")


def test_every_step_has_its_own_learning_rate_and_the_first_is_not_at_full_rate(tiny, tmp_path, seen):
    lines = run(tiny("training.log_every=1", "training.epochs=2"), tmp_path / "a")
    rates = [groups[0]["lr"] for groups in seen]
    # 4 steps an epoch, one of warm-up to 0.05: 0, ¼, ½, ¾; then the cosine from 0.05 at step 4.
    assert rates[:5] == pytest.approx([0.0, 0.0125, 0.025, 0.0375, 0.05])
    assert rates[6] == pytest.approx(0.025)
    assert [line["lr"] for line in lines] == rates
    assert all("weight_decay" not in line for line in lines)


def test_a_warm_up_in_epochs_is_not_counted_in_steps(tiny, tmp_path, seen):
    run(tiny("schedule={name: constant, warmup_epochs: 1.5}"), tmp_path / "a")
    assert [groups[0]["lr"] for groups in seen][4:7] == pytest.approx([0.05 * 4 / 6, 0.05 * 5 / 6, 0.05])


@pytest.mark.parametrize("name", ["adamw", "sgd", "larc"])
def test_every_step_has_its_own_weight_decay_which_is_logged(tiny, tmp_path, seen, name):
    optimizer = f"optimizer={{name: {name}, lr: 0.01, weight_decay: 0.04, final_weight_decay: 0.4}}"
    lines = run(tiny(optimizer, "training.log_every=1"), tmp_path / "a")
    decays = [group["weight_decay"] for groups in seen for group in groups if not group["excluded"]]
    assert (decays[0], decays[6]) == pytest.approx((0.04, 0.22))  # at the start, and after half of 12 steps
    assert sorted(set(decays)) == decays
    assert [line["weight_decay"] for line in lines] == decays
    excluded = [group["weight_decay"] for groups in seen for group in groups if group["excluded"]]
    assert len(excluded) == 12
    assert set(excluded) == {0.0}


def test_an_interrupted_run_follows_the_schedule_of_the_whole_run(tiny, tmp_path, seen):
    overrides = ["optimizer={name: adamw, lr: 0.01, weight_decay: 0.04, final_weight_decay: 0.4}"]
    run(tiny(*overrides), tmp_path / "whole")
    whole = list(seen)
    seen.clear()
    run(tiny(*overrides, "training.max_steps=3"), tmp_path / "parts")
    run(tiny(*overrides, "training.max_steps=6"), tmp_path / "parts", resume=True)
    assert seen == whole[:6]
