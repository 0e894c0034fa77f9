"""The kNN monitor watches a run and leaves no trace in it."""

from __future__ import annotations

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, Watched, trained

import sslcli.callbacks.shared_features as watched
from sslcli.callbacks.knn import KNNMonitor, KNNMonitorOptions
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.knn import KNN, KNNOptions


def parts(train=90, test=30, classes=3, size=8):
    return (
        InMemory(torch.arange(train) % classes, train, size=size),
        InMemory(torch.arange(test) % classes, test, size=size, split="test"),
    )


def started(context=None, **options):
    context = context or Watched(*parts())
    monitor = KNNMonitor(KNNMonitorOptions.parse(options))
    monitor.on_start(context)
    return monitor, context


def test_the_start_tells_pixels_and_the_untrained_encoder_in_one_line(messages):
    _, context = started()
    [(step, metrics)] = context.logged
    assert step == 0
    assert set(metrics) == {"knn_top1_pixels", "knn_top1"}
    pixels, encoder = f"{metrics['knn_top1_pixels']:.1%}", f"{metrics['knn_top1']:.1%}"
    assert messages == [
        f"kNN top-1: raw pixels {pixels}, the encoder before training {encoder} (30 images among 90, k 20)"
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


def test_the_end_is_measured_where_no_epoch_was_due_unless_the_run_was_cut_short(messages):
    monitor, context = started(every_epochs=2)
    monitor.on_end(context.at(4), "done")
    assert [step for step, _ in context.logged] == [0, 4]
    assert messages[-1].endswith("after 1 epoch")
    monitor, context = started(every_epochs=2)
    monitor.on_end(context.at(4), "interrupted")
    assert len(context.logged) == 1


def test_a_resumed_run_has_no_new_baseline_and_does_not_measure_again():
    monitor, context = started(every_epochs=1)
    monitor.on_epoch(context.at(4))
    resumed = KNNMonitor(KNNMonitorOptions(every_epochs=1))
    resumed.load_state_dict(monitor.state_dict())
    again = Watched(*parts()).at(4)
    resumed.on_start(again)
    resumed.on_end(again, "done")
    assert again.logged == []
    resumed.on_start(again)
    resumed.on_epoch(again.at(8))
    assert [step for step, _ in again.logged] == [8]


def test_the_encoder_and_the_random_state_are_unchanged_to_the_bit():
    backbone = TinyBackbone()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    context = Watched(*parts(), backbone)
    state = torch.get_rng_state()
    monitor, _ = started(context, every_epochs=1)
    monitor.on_epoch(context.at(4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Watched(None, None), "no labels"),
        (lambda: Watched(InMemory(None, 9), InMemory(None, 9, split="test")), "no labels"),
        (lambda: Watched(parts()[0], parts()[0]), "would search the images that it judges"),
    ],
)
def test_where_nothing_can_be_measured_it_says_so_once_and_is_silent(make, reason, messages):
    monitor, context = started(make(), every_epochs=1)
    monitor.on_epoch(context.at(4))
    monitor.on_end(context, "done")
    assert context.logged == []
    assert len(messages) == 1
    assert reason in messages[0]


def test_only_the_main_process_measures(messages):
    context = Watched(*parts())
    context.is_main = False
    monitor, _ = started(context, every_epochs=1)
    monitor.on_epoch(context.at(4))
    monitor.on_end(context, "done")
    assert (context.logged, messages) == ([], [])


def test_limits_keep_the_share_of_each_class(messages):
    monitor, _ = started(limit_train=30, limit_eval=12)
    bank, judged = monitor.parts
    assert torch.bincount(bank.data.labels).tolist() == [10, 10, 10]
    assert torch.bincount(judged.data.labels).tolist() == [4, 4, 4]
    assert bank.images.dtype == torch.uint8
    assert "12 images among 30" in messages[0]


def test_it_logs_what_the_evaluator_measures():
    given = trained()
    train, test = parts()
    context = Watched(train, test, given.backbone)
    subject = FrozenSubject(given, train, test, torch.device("cpu"))
    context.scale = subject.normalize
    started(context)
    expected = KNN(KNNOptions(k=(20,), temperature=(0.07,))).evaluate(subject).metrics["top1"]
    assert context.logged[0][1]["knn_top1"] == expected


def test_large_pixels_are_shrunk_and_may_be_left_out(messages):
    context = Watched(*parts(30, 12, size=40))
    context.image_size = 40
    _, context = started(context)
    assert "knn_top1_pixels" in context.logged[0][1]
    _, context = started(pixels=False)
    assert list(context.logged[0][1]) == ["knn_top1"]
    assert messages[-1].startswith("kNN top-1: the encoder before training")


def test_every_option_may_change_on_resume():
    assert {KNNMonitorOptions.resume_rule(name) for name in KNNMonitorOptions.model_fields} == {"free"}


def test_images_that_take_too_much_memory_are_read_again_and_give_the_same(monkeypatch, messages):
    def logged():
        monitor, context = started(every_epochs=1, limit_train=60)
        monitor.on_epoch(context.at(4))
        return monitor, context

    held, expected = logged()
    monkeypatch.setattr(watched, "HELD", 60 * 3 * 8 * 8 - 1)  # the 60 images to search do not fit, the 30 to judge do
    streamed, found = logged()
    assert held.parts[0].images is not None
    assert streamed.parts[0].images is None
    assert streamed.parts[1].images is not None
    assert found.logged == expected.logged
    assert messages[:2] == messages[2:]


def test_the_default_holds_no_more_than_it_says():
    large = InMemory(torch.arange(9) % 3, 9, size=8)
    assert watched.WatchedImages(large, None, 8).images is not None
    assert 10_000 * 3 * 112**2 < watched.HELD < 10_000 * 3 * 116**2
