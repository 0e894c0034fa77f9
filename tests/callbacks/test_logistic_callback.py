"""The logistic monitor fits on one half of a labeled part and is tested on the other."""

from __future__ import annotations

import torch
from evaluation_helpers import FakeRun, InMemory

from sslcli.callbacks import logistic as logistic_monitor
from sslcli.callbacks.logistic import LogisticMonitor, LogisticMonitorOptions


def started(labels=None, **options):
    labels = torch.arange(60) % 3 if labels is None else labels
    context = FakeRun(InMemory(labels, len(labels)), InMemory(labels, len(labels), split="test"))
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
    # The first half would be all of one class and half of another.
    assert torch.bincount(seen[0][1]).tolist() == [10, 10, 10]
    assert context.logged[0][1]["logistic_top1"] > 0.6  # the class is the mean color


def test_the_halves_are_disjoint_and_always_the_same(monkeypatch, messages):
    seen, tested = spied(monkeypatch), []
    accuracy = logistic_monitor.accuracy
    monkeypatch.setattr(logistic_monitor, "accuracy", lambda scores, y: tested.append(len(y)) or accuracy(scores, y))
    monitor, context = started()
    monitor.on_epoch(context.at(4))
    monitor.on_epoch(context.at(8))
    assert (len(seen[0][1]), tested) == (30, [30, 30])
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[0][0], seen[1][0])  # this encoder does not change
    assert messages[0] == f"logistic top-1 {context.logged[0][1]['logistic_top1']:.1%} after 1 epoch"
