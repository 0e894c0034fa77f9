"""The online probe is trained along with a run, is restored bitwise, and changes nothing in the run."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from evaluation_helpers import FakeRun, InMemory

from sslcli.callbacks.knn import KNNMonitor, KNNMonitorOptions
from sslcli.callbacks.online_probe import OnlineProbe, OnlineProbeOptions
from sslcli.runs.checkpoint import newest_intact, read_checkpoint
from sslcli.training.train import train

CLASSES = 3
LABELS = torch.arange(90) % CLASSES
PLAIN = {"name": "sgd", "momentum": 0.0}


def run(**options):
    context = FakeRun(InMemory(LABELS, 90), InMemory(LABELS[:30], 30, split="test"))
    context.classes = CLASSES
    probe = OnlineProbe(OnlineProbeOptions.parse(options))
    probe.on_start(context)
    return probe, context


def batch(step, count=24, dim=6):
    """Features that show the class, with noise."""
    g = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (count,), generator=g)
    return torch.randn(count, dim, generator=g) + 2 * F.one_hot(labels, dim), labels


def go(probe, context, first, last):
    for step in range(first, last + 1):
        context.at(step)
        context.step_features, context.step_labels = batch(step)
        probe.on_step(context)


def test_it_is_softmax_regression_by_gradient_descent():
    options = {"optimizer": PLAIN, "schedule": {"name": "constant"}, "standardize": False, "lr": 0.3}
    probe, context = run(**options)
    go(probe, context, 1, 3)
    weight, bias = torch.zeros(CLASSES, 6), torch.zeros(CLASSES)
    for step in (1, 2, 3):
        x, y = batch(step)
        error = (x @ weight.T + bias).softmax(dim=1) - F.one_hot(y, CLASSES)
        weight, bias = weight - 0.3 * error.T @ x / len(x), bias - 0.3 * error.mean(dim=0)
    torch.testing.assert_close(probe.probe.linear.weight.detach(), weight)
    torch.testing.assert_close(probe.probe.linear.bias.detach(), bias)


def test_log_lines_get_the_mean_since_the_last_one():
    probe, context = run(optimizer=PLAIN, schedule={"name": "constant"}, lr=0.5)
    assert probe.on_record(context) == {}
    go(probe, context, 1, 2)
    first = probe.on_record(context)
    assert first["probe_loss"] < torch.log(torch.tensor(3.0))
    assert set(first) == {"probe_loss", "probe_top1", "probe_lr"}  # three classes have no top 5
    assert first["probe_lr"] == 0.5
    assert probe.on_record(context) == {}
    go(probe, context, 3, 20)
    later = probe.on_record(context)
    assert later["probe_loss"] < first["probe_loss"]
    assert later["probe_top1"] > 0.8


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "larc"])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_restored_probe_is_the_one_that_never_stopped(name, standardize):
    options = {"optimizer": {"name": name, "weight_decay": 0.01}, "standardize": standardize}
    straight, context = run(**options)
    go(straight, context, 1, 8)
    stopped, context = run(**options)
    go(stopped, context, 1, 5)
    state = {key: value.clone() if hasattr(value, "clone") else value for key, value in stopped.state_dict().items()}
    resumed = OnlineProbe(OnlineProbeOptions.parse(options))
    resumed.load_state_dict(state)
    assert resumed.state_dict().keys() == state.keys()  # saved again before a step is made
    resumed.on_start(context)
    go(resumed, context, 6, 8)
    expected, found = straight.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert any(key.startswith("optimizer.") for key in expected)
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(found[key])), key


def test_another_kind_of_probe_starts_anew_and_says_so(messages):
    probe, context = run(standardize=True)
    go(probe, context, 1, 2)
    other = OnlineProbe(OnlineProbeOptions(standardize=False))
    other.load_state_dict(probe.state_dict())
    other.on_start(context)
    go(other, context, 3, 3)
    assert messages == ["online probe: starts from scratch, the checkpoint has a different kind of probe"]


def test_features_with_a_gradient_get_none_and_nothing_is_drawn():
    probe, context = run()
    state = torch.get_rng_state()
    for step in (1, 2):
        features, context.step_labels = batch(step)
        context.at(step).step_features = features.requires_grad_()
        probe.on_step(context)
        assert features.grad is None
    assert torch.equal(state, torch.get_rng_state())


def test_a_step_that_is_not_finite_does_not_stay_in_the_weights():
    probe, context = run()
    go(probe, context, 1, 2)
    features, context.step_labels = batch(3)
    context.at(3).step_features = features * torch.inf
    probe.on_step(context)
    go(probe, context, 4, 5)
    assert all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in probe.state_dict().values())


def test_it_is_tested_on_the_eval_part_after_epochs_and_at_the_end(messages):
    probe, context = run(every_epochs=2)
    go(probe, context, 1, 8)
    context.at(4)
    probe.on_epoch(context)
    assert context.logged == []
    context.at(8)
    probe.on_epoch(context)
    probe.on_end(context, "done")
    [(step, metrics)] = context.logged
    assert (step, list(metrics)) == (8, ["probe_eval_top1"])
    assert messages == [f"online probe top-1 {metrics['probe_eval_top1']:.1%} after 2 epochs"]


def test_a_probe_restored_after_its_last_step_is_tested_at_the_end(messages):
    """A run that was killed between its last checkpoint and its end has no step left."""
    probe, context = run(every_epochs=2)
    go(probe, context, 1, 2)
    resumed = OnlineProbe(probe.options)
    resumed.load_state_dict(probe.state_dict())
    resumed.on_start(context)
    for each in (probe, resumed):
        each.on_end(context, "done")
    first, second = context.logged
    assert first == second
    never, context = run()
    never.on_end(context, "done")
    assert context.logged == []


def test_the_knn_monitor_and_the_probe_compute_the_features_of_the_same_images_once():
    probe, context = run(every_epochs=1)
    knn = KNNMonitor(KNNMonitorOptions(every_epochs=1))
    knn.on_start(context)
    go(probe, context, 1, 4)
    before = context.backbone.calls
    knn.on_epoch(context)
    after_knn = context.backbone.calls
    probe.on_epoch(context)
    assert after_knn > before
    assert context.backbone.calls == after_knn
    knn.on_epoch(context.at(8))
    assert context.backbone.calls == 2 * after_knn - before  # a later step has other features


def test_features_that_are_not_one_for_each_image_switch_it_off_with_a_line(messages):
    probe, context = run()
    for step in (1, 2):
        features, labels = batch(step)
        context.at(step)
        context.step_features, context.step_labels = torch.cat([features, features]), labels
        probe.on_step(context)
    assert messages == ["online probe: off, the method does not return one feature per image"]


def trained(config, folder, **keywords):
    train(config, folder, **keywords)
    return newest_intact(folder / "checkpoints", read_checkpoint).tensors


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_is_bitwise_the_same_with_the_monitors_and_without(tiny, tmp_path, accumulate):
    common = (f"training.accumulate={accumulate}", "training.epochs=2", "callbacks.online_probe=null")
    on = (
        "callbacks.online_probe={every_epochs: 1}", "callbacks.logistic={every_epochs: 1}",
        "callbacks.knn={every_epochs: 1}",
    )  # fmt: skip
    without = trained(tiny(*common), tmp_path / "without")
    watched = trained(tiny(*common, *on), tmp_path / "watched")
    assert not any(name.startswith("callback.online_probe") for name in without)
    assert any(name.startswith("callback.online_probe.probe.") for name in watched)
    for name, tensor in without.items():
        assert torch.equal(tensor, watched[name]), name
    losses = [[line["loss"] for line in records(tmp_path / n) if "loss" in line] for n in ("without", "watched")]
    assert losses[0] == losses[1]
    line = [line for line in records(tmp_path / "watched") if "probe_loss" in line][-1]
    assert {"step", "epoch", "loss", "lr", "probe_loss", "probe_top1", "probe_lr"} <= set(line)


def test_a_restored_probe_needs_its_test_images_on_every_process() -> None:
    probe = OnlineProbe(OnlineProbe.Options())
    probe.tests = True
    assert probe.needs() == []
    probe.restored = {"step": 1}
    assert probe.needs() == [("eval", probe.options.limit_eval)]
