"""What all trained probes share: choice on held-out training images, training on all of them, one test at the end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from evaluation_helpers import InMemory, PlainSubject, clusters

from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import FeatureSet
from sslcli.evaluators.finetune.evaluator import FinetuneOptions
from sslcli.evaluators.linear.evaluator import LinearOptions
from sslcli.evaluators.probes.template import Probe, Trial
from sslcli.evaluators.probes.training import ProbeOptions, Training, curve_row


class Options(ProbeOptions):
    lr: tuple[float, ...] = ()


class Recorder(Probe):
    """Trains nothing; notes what it is asked for, and what the given rates would reach."""

    name = "recorded"

    def __init__(self, reached: dict[float, tuple[float, float]], **options: Any) -> None:
        super().__init__(Options.parse(options))
        self.reached = reached
        self.calls: list[tuple[int, int, int, Trial | None]] = []

    def prepare(self) -> None:
        self.labels = self.subject.features("train").labels
        self.candidates = [{"lr": lr} for lr in self.reached]

    def train(self, candidates: Any, images: Any, held_out: Any, start: Any) -> list[Trial]:
        self.calls.append((len(candidates), len(images), 0 if held_out is None else len(held_out), start))
        trials = []
        for settings in candidates:
            top1, loss = self.reached[settings["lr"]]
            curve = [curve_row(1, loss, 0.0, None if held_out is None else top1)]
            trials.append(Trial(settings, settings["lr"], *((top1, loss) if held_out is not None else ()), curve=curve))
        return trials

    def test(self, trial: Trial) -> Any:
        found = self.subject.features("eval")
        return torch.nn.functional.one_hot(found.labels, 4), found.labels

    def describe(self, trial: Trial, images: int) -> dict[str, Any]:
        return {"described": (trial.model, images)}


def evaluate(reached: dict[float, tuple[float, float]], train: FeatureSet | None = None, **options: Any) -> Any:
    subject = PlainSubject(train or clusters(200, 4), clusters(60, 4, seed=1), 4)
    probe = Recorder(reached, **options)
    return probe.evaluate(subject), probe, subject


def test_the_best_is_trained_again_on_all_images_and_tested_once_after_the_decision():
    result, trainer, subject = evaluate({0.1: (0.5, 1.0), 0.2: (0.7, 2.0), 0.3: (0.6, 0.1)})
    (sweep, final) = trainer.calls
    assert sweep == (3, 180, 20, None)
    assert (final[:3], final[3].settings) == ((1, 200, 0), {"lr": 0.2})
    assert (subject.decided, subject.read_at_decision) == ({"lr": 0.2}, ["train"])
    assert subject.read == ["train", "eval"]
    assert result.metrics == {"top1": 1.0}
    expected = {"described": (0.2, 200), "chosen_lr": 0.2, "train_images": 200, "fit_images": 200, "eval_images": 60}
    assert {key: result.protocol[key] for key in expected} == expected
    assert result.protocol["after_choice"] == "trained again on all training images"
    assert [row["held_out_top1"] for row in result.details["sweep"]] == [0.5, 0.7, 0.6]
    assert (result.details["held_out_top1"], result.details["held_out_images"]) == (0.7, 20)
    assert result.details["curve"][0]["held_out_top1"] == 0.7
    assert result.details["final_curve"][0]["held_out_top1"] is None


def test_without_refit_the_chosen_classifier_is_tested():
    result, trainer, _ = evaluate({0.1: (0.5, 1.0), 0.2: (0.4, 1.0)}, refit=False)
    assert len(trainer.calls) == 1
    assert result.protocol["described"] == (0.1, 180)
    assert result.protocol["after_choice"] == "tested as it was chosen"
    assert "final_curve" not in result.details


def test_a_single_candidate_is_used_as_it_is_with_nothing_held_out():
    result, trainer, subject = evaluate({0.1: (0.5, 1.0)})
    assert trainer.calls == [(1, 200, 0, None)]
    assert (subject.decided, result.protocol["choice"], result.details["sweep"]) == ({}, "none", [])


def test_ties_go_to_the_lower_loss_and_what_diverged_is_never_chosen():
    result, _, _ = evaluate({0.1: (0.5, 1.0), 0.2: (0.5, 0.9), 0.3: (0.5, 0.9), 0.4: (0.9, math.nan)})
    assert result.protocol["chosen_lr"] == 0.2
    assert result.details["sweep"][3]["held_out_loss"] is None
    with pytest.raises(UserError, match="recorded: every learning rate diverged"):
        evaluate({0.1: (0.5, math.nan), 0.2: (0.5, math.inf)})
    with pytest.raises(UserError, match=r"recorded: training with lr 0\.1 diverged; give a lower one"):
        evaluate({0.1: (0.5, math.nan)})


def test_where_no_image_can_be_held_out_it_says_so():
    with pytest.raises(UserError, match="recorded: no class has two images, so none can be held out; use more images"):
        evaluate({0.1: (0.5, 1.0), 0.2: (0.5, 1.0)}, train=FeatureSet(torch.randn(4, 5), torch.arange(4)))


def test_data_without_labels_are_refused_before_anything_is_read():
    subject = PlainSubject(clusters(9, 3), clusters(9, 3), 3)
    subject.data["train"] = InMemory(None, 9)
    with pytest.raises(UserError, match="has no labels"):
        Recorder({}).evaluate(subject)
    assert subject.read == []


def test_any_top_k_is_reported_and_one_that_is_always_right_is_not():
    assert list(evaluate({0.1: (0.5, 1.0)}, top=[1, 2, 3, 4, 20])[0].metrics) == ["top1", "top2", "top3"]
    assert list(evaluate({0.1: (0.5, 1.0)}, top=3)[0].metrics) == ["top3"]


def test_simsiams_published_setting_scales_its_rate_once():
    asked = {"name": "larc", "clip": False, "exclude": [], "scale_lr": "batch/256"}
    options = LinearOptions.parse({"lr": 0.1, "optimizer": asked, "batch_size": 4096, "epochs": 90})
    how = Training.of(options, 10_000)
    assert how.schedule_for(0.1, 2)(0) == pytest.approx(1.6)


def test_a_small_share_is_cut_into_batches_that_leave_hardly_an_image_out():
    options = FinetuneOptions.parse({"batch_size": 256})
    sizes = {n: Training.of(options, n, whole=True).batch_size for n in (450, 500, 1000, 50_000, 100)}
    assert sizes == {450: 225, 500: 250, 1000: 250, 50_000: 256, 100: 100}
    assert Training.of(options, 450).batch_size == 256


def test_a_part_of_a_section_changes_the_default_one():
    options = LinearOptions.parse({"optimizer": {"momentum": 0.5}, "schedule": {"final_lr": 0.001}})
    assert (options.optimizer["name"], options.optimizer["momentum"]) == ("sgd", 0.5)
    assert (options.schedule["name"], options.schedule["final_lr"]) == ("cosine", 0.001)
    assert LinearOptions.parse(options.plain()) == options
