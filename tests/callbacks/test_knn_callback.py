"""The kNN monitor: when it measures, and what."""

from __future__ import annotations

import pytest
import torch
from evaluation_helpers import FakeRun, InMemory, trained

import sslcli.callbacks.shared_features as shared
from sslcli.callbacks.knn import KNNMonitor, KNNMonitorOptions
from sslcli.callbacks.logistic import LogisticMonitorOptions
from sslcli.callbacks.online_probe import OnlineProbeOptions
from sslcli.contracts.method import Progress
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.knn import KNN, KNNOptions


def parts(train=90, test=30, size=8):
    return InMemory(torch.arange(train) % 3, train, size), InMemory(torch.arange(test) % 3, test, size, "test")


def started(context=None, **options):
    context = context or FakeRun(*parts())
    monitor = KNNMonitor(KNNMonitorOptions.parse(options))
    monitor.on_start(context)
    monitor.on_first_step(context.at(context.progress.step + 1))
    return monitor, context


def test_the_start_reports_pixels_and_the_untrained_encoder_in_one_line(messages):
    _, context = started()
    [(step, metrics)] = context.logged
    assert step == 0
    assert set(metrics) == {"knn_top1_pixels", "knn_top1"}
    pixels, encoder = f"{metrics['knn_top1_pixels']:.1%}", f"{metrics['knn_top1']:.1%}"
    assert messages == [
        f"kNN top-1: raw pixels {pixels}, encoder before training {encoder} (30 test images, 90 training images, k=20)"
    ]
    assert metrics["knn_top1_pixels"] > 0.6  # the class is the mean color


def test_it_measures_every_n_epochs_and_at_the_end_but_never_twice_at_a_step(messages):
    monitor, context = started(every_epochs=2)
    for step in (4, 8, 12, 16):
        monitor.on_epoch(context.at(step))
    assert [step for step, _ in context.logged] == [0, 8, 16]
    monitor.on_end(context, "done")
    assert len(context.logged) == 3
    assert messages[1].endswith("after 2 epochs")
    monitor.on_start(context.at(0))
    monitor.on_end(context.at(4), "done")
    assert context.logged[-1][0] == 4
    assert messages[-1].endswith("after 1 epoch")
    monitor.on_start(context.at(0))
    monitor.on_first_step(context.at(1))
    monitor.on_end(context.at(4), "interrupted")
    assert context.logged[-1][0] == 0


def test_a_trained_encoder_at_the_first_step_of_another_plan_is_no_baseline(messages):
    context = FakeRun(*parts())
    context.progress = Progress(0, 4, 4, shift=3)  # resumed with larger batches, rounded down to whole ones
    _, context = started(context)
    assert (context.logged, messages) == ([], [])


def test_the_baseline_is_that_of_the_weights_before_the_first_step(messages):
    expected = started(FakeRun(*parts(), trained().backbone))[1].logged
    context = FakeRun(*parts(), trained().backbone)
    monitor = KNNMonitor(KNNMonitorOptions())
    monitor.on_start(context)
    with torch.no_grad():
        context.backbone.conv.weight.zero_()  # every image has the same features now
        context.backbone.conv.bias.zero_()
    monitor.on_first_step(context.at(1))
    assert context.logged == expected
    monitor.on_first_step(context.at(2))
    assert len(context.logged) == 1


def test_a_resumed_run_has_no_new_baseline_and_does_not_measure_again():
    monitor, context = started(every_epochs=1)
    monitor.on_epoch(context.at(4))
    resumed = KNNMonitor(KNNMonitorOptions(every_epochs=1))
    resumed.load_state_dict(monitor.state_dict())
    again = FakeRun(*parts()).at(4)
    resumed.on_start(again)
    resumed.on_first_step(again)
    resumed.on_end(again, "done")
    assert again.logged == []
    resumed.on_start(again)
    resumed.on_epoch(again.at(8))
    assert [step for step, _ in again.logged] == [8]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: FakeRun(None, None), "no labels"),
        (lambda: FakeRun(InMemory(None, 9), InMemory(None, 9, split="test")), "no labels"),
        (lambda: FakeRun(parts()[0], parts()[0]), "the training and the test images are the same"),
    ],
)
def test_where_nothing_can_be_measured_it_says_so_once(make, reason, messages):
    monitor, context = started(make(), every_epochs=1)
    monitor.on_epoch(context.at(4))
    monitor.on_end(context, "done")
    assert context.logged == []
    assert len(messages) == 1
    assert reason in messages[0]


def test_limits_keep_the_share_of_each_class(messages):
    _, context = started(limit_train=30, limit_eval=12)
    for part, limit in (("train", 30), ("eval", 12)):
        images = shared.shared_images(context, part, limit)
        assert torch.bincount(images.data.labels).tolist() == [limit // 3] * 3
        assert images.kept.blocks[0][0].dtype == torch.uint8
    assert "12 test images, 30 training images" in messages[0]


def test_it_logs_what_the_evaluator_measures():
    given = trained()
    train, test = parts()
    context = FakeRun(train, test, given.backbone)
    subject = FrozenSubject(given, train, test, torch.device("cpu"))
    context.scale = subject.normalize
    started(context)
    expected = KNN(KNNOptions(k=(20,), temperature=(0.07,))).evaluate(subject).metrics["top1"]
    assert context.logged[0][1]["knn_top1"] == expected


def test_large_pixels_are_reduced_and_may_be_left_out(messages):
    context = FakeRun(*parts(30, 12, size=40))
    context.image_size = 40
    _, context = started(context)
    assert "knn_top1_pixels" in context.logged[0][1]
    _, context = started(pixels=False)
    assert list(context.logged[0][1]) == ["knn_top1"]
    assert messages[-1].startswith("kNN top-1: encoder before training")


@pytest.mark.parametrize("options", [KNNMonitorOptions, LogisticMonitorOptions, OnlineProbeOptions])
def test_every_option_of_a_monitor_may_change_on_resume(options):
    assert {options.resume_rule(name) for name in options.model_fields} == {"free"}


def test_images_that_take_too_much_memory_are_read_again_with_the_same_result(monkeypatch, messages):
    def measured():
        monitor, context = started(FakeRun(*parts(), trained().backbone), every_epochs=1, limit_train=60)
        monitor.on_epoch(context.at(4))
        kept = [shared.shared_images(context, *key).kept is not None for key in (("train", 60), ("eval", 2000))]
        return kept, context.logged

    expected = measured()
    monkeypatch.setattr(shared, "KEPT", 60 * 3 * 8 * 8 - 1)  # the 60 images to search do not fit, the 30 others do
    found = measured()
    assert (expected[0], found[0]) == ([True, True], [False, True])
    assert found[1] == expected[1]
    assert messages[:2] == messages[2:]
