"""A run that was interrupted and resumed is bitwise identical to one that was not."""

from __future__ import annotations

import json
import signal

import pytest
from run_helpers import assert_same_end, contents, newest

from sslcli.contracts.errors import SslError, UserError
from sslcli.runs.checkpoint import list_checkpoints
from sslcli.runs.metrics import read_metrics
from sslcli.training.resume import differences
from sslcli.training.train import train


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that was not interrupted."""
    return train(tiny(), tmp_path_factory.mktemp("whole") / "run").directory


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.accumulate=2", "training.clip={norm: 0.5}"],
        ["training.precision=bf16"],
        ["training.precision=fp16", "training.channels_last=false"],
        ["method=mean_method", "backbone=dropping", "callbacks.counter={}"],
        ["training.drop_last=false", "data.count=30"],
    ],
    ids=[
        "accumulate and clip",
        "bf16",
        "fp16 with its scaler",
        "dropout and a callback's state",
        "a smaller last step",
    ],
)
def test_a_run_resumed_in_mid_epoch_ends_bitwise_identical(tiny, tmp_path, odd_plugins, overrides):
    overrides = [*overrides, "training.epochs=2"]
    train(tiny(*overrides), tmp_path / "whole")
    train(tiny(*overrides, "training.max_steps=3"), tmp_path / "parts")
    assert newest(tmp_path / "parts").step == 3
    train(tiny(*overrides), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    numbers = newest(tmp_path / "parts").document["numbers"]
    assert numbers.get("callback.counter.steps", 8) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_step_saves_and_resumes(tiny, tmp_path, odd_plugins, number, whole):
    result = train(tiny(f"callbacks.signaler={{step: 6, number: {int(number)}}}"), tmp_path / "parts")
    assert (result.signal, result.step) == (number, 6)
    assert not (tmp_path / "parts" / "backbone.safetensors").exists()
    assert train(tiny(), tmp_path / "parts", resume=True).signal is None
    assert_same_end(whole, tmp_path / "parts")


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored(tiny, tmp_path, odd_plugins):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        result = train(tiny(f"callbacks.signaler={{step: 6, number: {int(signal.SIGHUP)}}}"), tmp_path / "run")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.signal, result.step) == (None, 12)


def test_a_signal_in_the_last_step_takes_nothing_away(tiny, tmp_path, odd_plugins):
    result = train(tiny(f"callbacks.signaler={{step: 12, number: {int(signal.SIGTERM)}}}"), tmp_path / "a")
    assert (result.signal, result.step) == (signal.SIGTERM, 12)
    assert (tmp_path / "a" / "backbone.safetensors").exists()


@pytest.mark.parametrize("rest", [b'{"step": 8, "loss": 1.0}\n{"step": 9, "lo', b"\xff\xfe\x00{"])
def test_the_log_of_a_resumed_run_has_each_step_once(tiny, tmp_path, rest):
    train(tiny("training.max_steps=6"), tmp_path / "a")
    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:  # left by a run that was killed later
        file.write(rest)
    train(tiny(), tmp_path / "a", resume=True)
    assert [line["step"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl")] == [2, 4, 6, 8, 10, 12]
    assert len(json.loads((tmp_path / "a" / "environment.json").read_text())["starts"]) == 2


def test_a_run_is_only_resumed_on_request_and_then_made_longer(tiny, tmp_path):
    assert train(tiny("training.epochs=1"), tmp_path / "a", resume=True).step == 4
    before = contents(tmp_path / "a")
    with pytest.raises(UserError, match="already contains a run"):
        train(tiny("training.epochs=1"), tmp_path / "a")
    assert contents(tmp_path / "a") == before
    assert train(tiny("training.epochs=2"), tmp_path / "a", resume=True).step == 8


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(tiny, tmp_path, messages, whole):
    train(tiny("training.max_steps=9"), tmp_path / "a")
    damaged = list_checkpoints(tmp_path / "a" / "checkpoints")[0]
    damaged.write_bytes(damaged.read_bytes()[:-100] + b"x" * 100)
    train(tiny(), tmp_path / "a", resume=True)
    assert any(damaged.name in line and "damaged" in line and "tensor" in line for line in messages)
    assert any("resuming" in line and "from step 8 of 12" in line for line in messages)
    assert_same_end(whole, tmp_path / "a")
    for path in list_checkpoints(tmp_path / "a" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SslError, match="none of the 2 checkpoints is intact"):
        train(tiny(), tmp_path / "a", resume=True)


def test_changed_options_are_refused_or_reported_by_their_rule(tiny, tmp_path, messages):
    train(tiny("training.epochs=1"), tmp_path / "a")
    for change, message in (
        ("method.temperature=0.9", r"method\.temperature: 0\.5 in the run, 0\.9 now"),
        ("seed=1", "seed: 0 in the run, 1 now"),
        ("views.flip=0.1", r"views\.0\.flip\.p: 0\.5 in the run, 0\.1 now"),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny("training.epochs=1", change), tmp_path / "a", resume=True)
    changes = ["training.batch_size=16", "training.epochs=4", "training.log_every=1", "callbacks.counter=null"]
    train(tiny(*changes), tmp_path / "a", resume=True)
    lines = [line for line in messages if "resuming with" in line]
    assert lines == ["warning: resuming with training.batch_size: 8 in the run, 16 now"]


def test_a_resumed_run_keeps_what_auto_was(tiny, tmp_path, messages):
    train(tiny("training.epochs=1", "training.precision=fp32"), tmp_path / "a")
    train(tiny("training.epochs=2", "training.precision=auto"), tmp_path / "a", resume=True)
    assert newest(tmp_path / "a").document["config"]["training"]["precision"] == "fp32"
    assert [line for line in messages if "resuming with" in line] == []


def test_a_run_whose_images_were_not_in_memory_reads_them_while_training_again(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("sslcli.data.source.free_memory", lambda device: 0)
        train(tiny("training.epochs=2"), tmp_path / "whole")
        train(tiny("training.epochs=2", "training.max_steps=3"), tmp_path / "parts")
    train(tiny("training.epochs=2"), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_run_whose_images_were_in_memory_keeps_them_there_as_long_as_they_fit(
    tiny, tmp_path, monkeypatch, messages, whole
):
    train(tiny("training.max_steps=3"), tmp_path / "parts")
    images = 32 * 3 * 16 * 16
    monkeypatch.setattr("sslcli.data.source.free_memory", lambda device: images)  # a new run would want twice as much
    train(tiny(), tmp_path / "parts", resume=True)
    assert_same_end(whole, tmp_path / "parts")
    assert [line for line in messages if "bitwise" in line] == []


def test_images_that_no_longer_fit_into_memory_are_reported(tiny, tmp_path, monkeypatch, messages):
    train(tiny("training.max_steps=3"), tmp_path / "a")
    monkeypatch.setattr("sslcli.data.source.free_memory", lambda device: 0)
    train(tiny(), tmp_path / "a", resume=True)
    assert [line for line in messages if "bitwise" in line] == [
        "warning: the images were all in memory and do not fit there now: results will not be bitwise identical"
    ]


def test_runs_with_one_seed_are_equal_and_with_two_are_not(tiny, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny("training.epochs=1", f"seed={seed}"), tmp_path / name)
    assert_same_end(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / "a", tmp_path / "c")


def test_a_run_older_than_an_option_is_resumed_with_its_default(tiny):
    stored = tiny().plain()
    assert differences(tiny(), stored) == []
    for section, option in (("schedule", "warmup_start"), ("method", "temperature"), ("training", "log_every")):
        del stored[section][option]
    assert differences(tiny("training.log_every=20"), stored) == []
    changed = differences(tiny("training.log_every=20", "method.temperature=0.9"), stored)
    assert changed == [("fixed", "method.temperature: 0.5 in the run, 0.9 now")]
    stored["schedule"]["warmup_speed"] = 2  # an option of an older version
    assert ("fixed", "schedule.warmup_speed: 2 in the run, None now") in differences(tiny(), stored)


def test_views_of_a_run_older_than_an_option_are_compared_by_option(tiny):
    byol = ["method=byol", "views.size=96", "views.blur={kernel: 0.1}"]
    stored = tiny(*byol).plain()
    for view in stored["views"]:
        (blur,) = [operation for operation in view["operations"] if operation["name"] == "blur"]
        del blur["padding"]
    assert differences(tiny(*byol), stored) == []
    now = tiny(*byol[:2], "views.blur={kernel: wide}")
    assert differences(now, stored) == [
        ("fixed", f"views.{view}.blur.kernel: 0.1 in the run, 'wide' now") for view in (0, 1)
    ]
    other = differences(tiny("method=byol", "views.size=96", "views.blur=0"), stored)
    assert [line.partition(":")[0] for _, line in other] == ["views"]
