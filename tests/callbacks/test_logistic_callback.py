"""The logistic monitor fits on one half of a labeled part and is judged on the other."""

from __future__ import annotations

import torch
from evaluation_helpers import InMemory, TinyBackbone, Watched

from sslcli.callbacks import logistic as logistic_monitor
from sslcli.callbacks.logistic import LogisticMonitor, LogisticMonitorOptions


def started(labels=None, **options):
    labels = torch.arange(60) % 3 if labels is None else labels
    context = Watched(InMemory(labels, len(labels)), InMemory(labels, len(labels), split="test"))
    monitor = LogisticMonitor(LogisticMonitorOptions.parse({"every_epochs": 1, **options}))
    monitor.on_start(context)
    return monitor, context


def spied(monkeypatch):
    """Notes the labels that are fitted on."""
    seen = []
    fit = logistic_monitor.fit_logistic

    def noting(features, labels, *rest, **options):
        seen.append((features, labels))
        return fit(features, labels, *rest, **options)

    monkeypatch.setattr(logistic_monitor, "fit_logistic", noting)
    return seen


def test_halves_of_class_sorted_data_are_shuffled(monkeypatch):
    seen = spied(monkeypatch)
    monitor, context = started((torch.arange(60) // 20).sort().values)
    monitor.on_epoch(context.at(4))
    assert torch.bincount(seen[0][1]).tolist() == [
        10,
        10,
        10,
    ]  # the first half would be all of one class and half of another
    assert context.logged[0][1]["logistic_top1"] > 0.6  # the class is the mean color


def test_no_image_is_fitted_on_and_judged(monkeypatch):
    seen = spied(monkeypatch)
    judged = []
    accuracy = logistic_monitor.accuracy
    monkeypatch.setattr(logistic_monitor, "accuracy", lambda scores, y: judged.append(len(y)) or accuracy(scores, y))
    monitor, context = started()
    monitor.on_epoch(context.at(4))
    assert (len(seen[0][1]), judged) == (30, [30])


def test_the_halves_are_the_same_at_every_look(monkeypatch):
    seen = spied(monkeypatch)
    monitor, context = started()
    monitor.on_epoch(context.at(4))
    monitor.on_epoch(context.at(8))
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[0][0], seen[1][0])  # the stand-in's encoder has not changed


def test_it_leaves_encoder_and_chance_alone_and_speaks_once_per_look(messages):
    monitor, context = started()
    before = {name: tensor.clone() for name, tensor in context.backbone.state_dict().items()}
    state = torch.get_rng_state()
    monitor.on_epoch(context.at(4))
    monitor.on_end(context, "done")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in context.backbone.state_dict().items())
    assert context.backbone.training
    [(_, metrics)] = context.logged
    assert messages == [f"logistic top-1 {metrics['logistic_top1']:.1%} after 1 epoch"]


def test_without_labels_it_says_so_once(messages):
    context = Watched(None, None, TinyBackbone())
    monitor = LogisticMonitor(LogisticMonitorOptions(every_epochs=1))
    monitor.on_start(context)
    monitor.on_epoch(context.at(4))
    monitor.on_end(context, "done")
    assert context.logged == []
    assert len(messages) == 1
