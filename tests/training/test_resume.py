"""A run that was stopped and resumed is, to the bit, the run that was never stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import SslError, UserError
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.directory import read_metrics
from sslcli.training.resume import differences
from sslcli.training.train import TrainResult, train


def run(config: RunConfig, output: Path, *, resume: bool = False, said: list[str] | None = None) -> TrainResult:
    lines = [] if said is None else said
    return train(config, output, resume=resume, tell=lines.append)


def assert_same_end(first: Path, second: Path) -> None:
    """Every tensor and number of the two newest checkpoints is equal, and they are at the same step."""
    a, b = (read_checkpoint(list_checkpoints(path / "checkpoints")[0]) for path in (first, second))
    assert a.step == b.step
    assert a.document["numbers"] == b.document["numbers"]
    assert a.document["scaler"] == b.document["scaler"]
    assert set(a.tensors) == set(b.tensors)
    different = [name for name in a.tensors if not torch.equal(a.tensors[name], b.tensors[name])]
    assert different == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer={name: sgd, lr: 0.05, momentum: 0.9}"],
        ["optimizer={name: adamw, lr: 0.01, weight_decay: 0.1}"],
        ["optimizer={name: lars, lr: 0.3, weight_decay: 1e-4}"],
        ["optimizer={name: lars_simclr, lr: 0.3, weight_decay: 1e-4}"],
        ["optimizer={name: larc, lr: 0.3, weight_decay: 1e-4, exclude: []}"],
        ["optimizer={name: adamw, lr: 0.01, weight_decay: 0.04, final_weight_decay: 0.4}"],
        ["training.accumulate=2", "training.clip={norm: 0.5}"],
        ["training.precision=bf16"],
        ["training.precision=fp16", "training.channels_last=false"],
    ],
    ids=[
        "sgd",
        "adamw",
        "lars",
        "lars_simclr",
        "larc",
        "a weight decay that grows",
        "accumulate and clip",
        "bf16",
        "fp16 with its scaler",
    ],
)
def test_three_steps_and_the_rest_are_one_run_in_mid_epoch(tiny, tmp_path, overrides):
    run(tiny(*overrides), tmp_path / "whole")
    run(tiny(*overrides, "training.max_steps=3"), tmp_path / "parts")
    assert list_checkpoints(tmp_path / "parts" / "checkpoints")[0].name == "step-000000003.safetensors"
    run(tiny(*overrides), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_chance_within_the_model_and_callbacks_go_on_where_they_were(tiny, tmp_path, odd_plugins):
    overrides = ["method=mean_method", "backbone=dropping", "callbacks.counter={}"]
    run(tiny(*overrides), tmp_path / "whole")
    run(tiny(*overrides, "training.max_steps=5"), tmp_path / "parts")
    run(tiny(*overrides), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    numbers = read_checkpoint(list_checkpoints(tmp_path / "parts" / "checkpoints")[0]).document["numbers"]
    assert numbers["callback.counter.steps"] == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_finishes_the_step_saves_and_resumes(tiny, tmp_path, odd_plugins, number):
    result = run(tiny(f"callbacks.signaler={{step: 6, number: {int(number)}}}"), tmp_path / "parts")
    assert (result.signal, result.step) == (number, 6)
    assert not (tmp_path / "parts" / "backbone.safetensors").exists()
    assert run(tiny(), tmp_path / "parts", resume=True).signal is None
    run(tiny(), tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_the_log_of_a_resumed_run_has_each_step_once(tiny, tmp_path):
    run(tiny("training.max_steps=6"), tmp_path / "a")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:  # what a run that was killed later would have left
        file.write(json.dumps({"step": 8, "loss": 1.0}) + "\n" + '{"step": 9, "lo')
    run(tiny(), tmp_path / "a", resume=True)
    assert [line["step"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl")] == [2, 4, 6, 8, 10, 12]
    starts = json.loads((tmp_path / "a" / "environment.json").read_text())["starts"]
    assert len(starts) == 2


def test_an_existing_run_is_not_overwritten(tiny, tmp_path):
    run(tiny("training.epochs=1"), tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a run already"):
        run(tiny("training.epochs=1"), tmp_path / "a")
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_resume_starts_afresh_where_there_is_nothing_yet(tiny, tmp_path):
    assert run(tiny("training.epochs=1"), tmp_path / "a", resume=True).step == 4


def test_a_finished_run_resumed_with_more_epochs_goes_on(tiny, tmp_path):
    run(tiny("training.epochs=1"), tmp_path / "a")
    assert run(tiny("training.epochs=2"), tmp_path / "a", resume=True).step == 8


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tiny, tmp_path):
    run(tiny(), tmp_path / "whole")
    run(tiny("training.max_steps=9"), tmp_path / "a")
    newest, before = list_checkpoints(tmp_path / "a" / "checkpoints")
    damaged = bytearray(newest.read_bytes())
    damaged[-100] ^= 1
    newest.write_bytes(damaged)
    said: list[str] = []
    run(tiny(), tmp_path / "a", resume=True, said=said)
    assert any(newest.name in line and "damaged" in line and "tensor" in line for line in said)
    assert any("resuming" in line and "from step 8 of 12" in line for line in said), before
    assert_same_end(tmp_path / "whole", tmp_path / "a")


def test_a_run_whose_checkpoints_are_all_damaged_fails_and_is_left_alone(tiny, tmp_path):
    run(tiny("training.epochs=1"), tmp_path / "a")
    for path in list_checkpoints(tmp_path / "a" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SslError, match="none of the 1 checkpoints is intact"):
        run(tiny("training.epochs=1"), tmp_path / "a", resume=True)


def test_a_fixed_field_that_differs_is_refused_and_shown(tiny, tmp_path):
    run(tiny("training.epochs=1"), tmp_path / "a")
    with pytest.raises(UserError, match=r"method\.temperature: 0\.5 in the run, 0\.9 now"):
        run(tiny("training.epochs=1", "method.temperature=0.9"), tmp_path / "a", resume=True)
    with pytest.raises(UserError, match=r"seed: 0 in the run, 1 now"):
        run(tiny("training.epochs=1", "seed=1"), tmp_path / "a", resume=True)
    with pytest.raises(UserError, match="views"):
        run(tiny("training.epochs=1", "views.flip=0.1"), tmp_path / "a", resume=True)


def test_a_batch_size_that_differs_is_reported_and_free_fields_are_not(tiny, tmp_path):
    run(tiny("training.epochs=1"), tmp_path / "a")
    said: list[str] = []
    changes = ["training.batch_size=16", "training.epochs=4", "training.log_every=1", "callbacks.counter=null"]
    run(tiny(*changes), tmp_path / "a", resume=True, said=said)
    lines = [line for line in said if "resuming with" in line]
    assert lines == ["warning: resuming with training.batch_size: 8 in the run, 16 now"]


def test_what_auto_meant_is_kept_on_resume(tiny, tmp_path):
    """A run that began in fp32 stays so, even where `auto` would now choose otherwise."""
    run(tiny("training.epochs=1", "training.precision=fp32"), tmp_path / "a")
    said: list[str] = []
    run(tiny("training.epochs=2", "training.precision=auto"), tmp_path / "a", resume=True, said=said)
    newest = read_checkpoint(list_checkpoints(tmp_path / "a" / "checkpoints")[0])
    assert newest.document["config"]["training"]["precision"] == "fp32"
    assert [line for line in said if line.startswith("resuming with")] == []


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(tiny, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tiny("training.epochs=1", f"seed={seed}"), tmp_path / name)
    assert_same_end(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / "a", tmp_path / "c")


def test_a_run_from_before_an_option_existed_goes_on_with_its_default(tiny, tmp_path):
    stored = tiny().plain()
    assert differences(tiny(), stored) == []
    for section, option in (("schedule", "warmup_start"), ("method", "temperature"), ("training", "log_every")):
        del stored[section][option]
    assert differences(tiny("training.log_every=20"), stored) == []
    [(rule, line)] = differences(tiny("training.log_every=20", "method.temperature=0.9"), stored)
    assert (rule, line) == ("fixed", "method.temperature: 0.5 in the run, 0.9 now")


def test_an_option_that_no_longer_exists_is_shown_on_resume(tiny):
    stored = tiny().plain()
    stored["schedule"]["warmup_speed"] = 2
    assert ("fixed", "schedule.warmup_speed: 2 in the run, None now") in differences(tiny(), stored)
