"""The linear probe: many heads at once equal one at a time, and nothing of the test part leaks into the choice."""

from __future__ import annotations

import json

import pytest
import torch
from evaluation_helpers import PlainSubject, clusters
from torch import nn

from sslcli.config.document import Document
from sslcli.config.options import validate
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.evaluation import FeatureSet
from sslcli.data.subset import stratified_split
from sslcli.evaluators.linear import heads as linear_heads
from sslcli.evaluators.linear import updates as linear_updates
from sslcli.evaluators.linear.evaluator import Linear, LinearOptions
from sslcli.evaluators.linear.heads import (
    CachedBatches,
    best_head,
    judge_heads,
    standardizations,
    train_heads,
)
from sslcli.evaluators.probes.training import Training
from sslcli.randomness import permutation, seed_for

OPTIONS = {"epochs": 5, "batch_size": 32}


def training(name="sgd", schedule=None, init="zero", epochs=4, batch_size=16, **options):
    asked = LinearOptions.parse({"optimizer": {"name": name, **options}, "schedule": schedule or {}})
    return Training(asked.optimizer, asked.schedule, epochs, batch_size, init)


SGD = training(weight_decay=1e-3, exclude=[])


def fitted(features, labels, rows, classes, rates, standardize, how=SGD, seed=0, **more):
    batches = CachedBatches(features, labels, rows, how.batch_size, seed)
    return train_heads(batches, standardizations(features, rows, standardize), classes, rates, how, seed, **more)


def torch_head(features, labels, rows, classes, rate, standardized, seed, epochs=4, batch_size=16, **options):
    """The same training by torch's own layer, SGD and schedule, in float64."""
    x = features.double()
    if standardized:
        x = (x - x[rows].mean(dim=0)) / (x[rows].var(dim=0, correction=0) + 1e-5).sqrt()
    layer = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), rate, **{"momentum": 0.9, "weight_decay": 1e-3, **options})
    steps = -(-len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs * steps)
    curve = []
    for epoch in range(epochs):
        total = 0.0
        for batch in rows[permutation(seed_for(seed, 2), epoch, len(rows))].split(batch_size):
            loss = nn.functional.cross_entropy(layer(x[batch]), labels[batch])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
            total += loss.item() * len(batch)
        curve.append(total / len(rows))
    return layer, torch.tensor(curve, dtype=torch.float64)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("standardized", [False, True])
def test_a_head_equals_torchs_own_sgd_in_float64(standardized, nesterov):
    data = clusters(75, 4)
    rows = torch.arange(0, 75, 2)
    features = data.features.double()
    how = training(weight_decay=1e-3, exclude=[], nesterov=nesterov)
    heads, found = fitted(features, data.labels, rows, 4, [0.01, 0.1], [False, standardized], how, 3)
    for place, rate in enumerate([0.01, 0.1]):
        layer, curve = torch_head(features, data.labels, rows, 4, rate, standardized, 3, nesterov=nesterov)
        torch.testing.assert_close(heads.weight[1, place], layer.weight.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(heads.bias[1, place], layer.bias.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found.losses[:, 1, place], curve, rtol=1e-9, atol=0)


def test_biases_are_kept_out_of_weight_decay_unless_exclude_says_otherwise():
    data = clusters(75, 4)
    rows, features = torch.arange(75), data.features.double()
    first, _ = fitted(features, data.labels, rows, 4, [0.1], [True], training(weight_decay=0.1))
    second, _ = fitted(features, data.labels, rows, 4, [0.1], [True], training(weight_decay=0.1, exclude=[]))
    assert second.bias.norm() < 0.9 * first.bias.norm()


def test_the_joint_sweep_equals_a_run_of_the_chosen_rate_alone():
    data = clusters(120, 4)
    rows = torch.arange(100)
    joint, curve = fitted(data.features, data.labels, rows, 4, [0.001, 0.03, 1e30], [False, True])
    assert not bool(torch.isfinite(curve.losses[:, :, 2]).all())  # a diverged neighbor
    alone, own = fitted(data.features, data.labels, rows, 4, [0.03], [True])
    torch.testing.assert_close(joint.weight[1, 1], alone.weight[0, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(curve.losses[:, 1, 1], own.losses[:, 0, 0], rtol=1e-5, atol=1e-6)
    x, y = data.features[100:], data.labels[100:]
    assert judge_heads(joint, x, y)[0][1, 1] == judge_heads(alone, x, y)[0][0, 0]


SETTINGS = {
    "adam": {},
    "adamw": {"weight_decay": 0.05},
    "larc": {"clip": False, "trust_coefficient": 0.2, "weight_decay": 1e-4},
    "lars": {"trust_coefficient": 0.1},
    "lars_simclr": {"trust_coefficient": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_with_any_optimizer_a_head_among_many_is_as_if_it_were_alone(name):
    """A trust ratio over several heads at once, or state that they share, would show here."""
    data, how = clusters(120, 4), training(name, init="normal", **SETTINGS[name])
    rows = torch.arange(100)
    joint, curve = fitted(data.features, data.labels, rows, 4, [0.003, 0.1, 1.0], [False, True], how)
    for v, r in ((0, 0), (1, 1), (1, 2)):
        alone, own = fitted(data.features, data.labels, rows, 4, [[0.003, 0.1, 1.0][r]], [bool(v)], how)
        torch.testing.assert_close(joint.weight[v, r], alone.weight[0, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(curve.losses[:, v, r], own.losses[:, 0, 0], rtol=1e-3, atol=1e-4)
    assert float(curve.losses[-1, 1].min()) < 0.9 * float(curve.losses[0, 1].min())


def test_sgd_on_all_heads_at_once_is_the_registered_sgd_head_by_head(monkeypatch):
    data = clusters(120, 4)
    how = training(weight_decay=0.1, final_weight_decay=0.5, nesterov=True, schedule={"warmup_epochs": 1})
    joint, curve = fitted(data.features.double(), data.labels, torch.arange(100), 4, [0.03, 0.3], [False, True], how)
    monkeypatch.setattr(linear_updates, "SGD", None)
    single, own = fitted(data.features.double(), data.labels, torch.arange(100), 4, [0.03, 0.3], [False, True], how)
    torch.testing.assert_close(joint.weight, single.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(joint.bias, single.bias, rtol=1e-9, atol=1e-12)
    assert curve.lr == own.lr


def test_the_schedule_is_stepped_before_the_optimizer():
    """With a warm-up from 0 the first step changes nothing."""
    data, how = clusters(16, 4), training(schedule={"warmup_epochs": 1}, epochs=1)
    heads, curve = fitted(data.features, data.labels, torch.arange(16), 4, [0.1], [False], how)
    assert curve.lr == [[0.0]]
    assert not heads.weight.any()


def test_heads_are_judged_as_cross_entropy_and_argmax_judge_them():
    data = clusters(90, 4)
    heads, _ = fitted(data.features, data.labels, torch.arange(60), 4, [0.01, 0.1], [False, True])
    top1, loss = judge_heads(heads, data.features[60:], data.labels[60:])
    x = (data.features[60:] - heads.mean[1]) * heads.scale[1]
    logits = x @ heads.weight[1, 0].T + heads.bias[1, 0]
    assert float(top1[1, 0]) == pytest.approx(float((logits.argmax(dim=1) == data.labels[60:]).double().mean()))
    assert float(loss[1, 0]) == pytest.approx(float(nn.functional.cross_entropy(logits, data.labels[60:])), rel=1e-5)


def test_accuracy_is_not_the_unweighted_mean_of_batch_accuracies(monkeypatch):
    data = clusters(91, 4, spread=2.0)
    heads, _ = fitted(data.features, data.labels, torch.arange(40), 4, [0.1], [True])
    whole = judge_heads(heads, data.features, data.labels)
    monkeypatch.setattr(linear_heads, "BLOCK", 4 * 90)  # blocks of 90 images and of 1
    torch.testing.assert_close(judge_heads(heads, data.features, data.labels), whole, rtol=1e-6, atol=0)


def test_a_diverged_head_is_never_chosen_and_ties_go_to_the_lower_loss():
    top1 = torch.tensor([[0.9, 0.5], [0.5, 0.4]])
    assert best_head(top1, torch.tensor([[torch.nan, 0.7], [0.6, 0.1]])) == (1, 0)
    assert best_head(top1, torch.full((2, 2), torch.inf)) is None


def test_the_held_out_part_is_stratified_and_disjoint():
    labels = torch.cat([torch.zeros(100), torch.ones(40), torch.full((3,), 2.0), torch.full((1,), 3.0)]).long()
    fit, held = stratified_split(labels, 0.1, 0)
    assert torch.equal(torch.cat([fit, held]).sort().values, torch.arange(144))
    assert torch.bincount(labels[held], minlength=4).tolist() == [10, 4, 1, 0]
    assert not torch.equal(held[:10], torch.arange(10))
    assert not torch.equal(held, stratified_split(labels, 0.1, 1)[1])


def evaluate(train=None, test=None, seed=0, classes=4, **options):
    subject = PlainSubject(train or clusters(200, classes), test or clusters(60, classes, seed=1), classes, seed)
    return Linear(LinearOptions.parse(OPTIONS | options)).evaluate(subject), subject


def test_the_test_labels_have_no_part_in_the_choice():
    """Held-out labels that fit and test labels that are permuted: a choice made on the test part would change."""
    test = clusters(60, 4, seed=1)
    honest, _ = evaluate(test=test)
    for shift in (1, 2, 3):
        planted, _ = evaluate(test=FeatureSet(test.features, (test.labels + shift) % 4))
        for key in ("chosen", "sweep", "curve", "final_curve"):
            assert planted.details[key] == honest.details[key]
        assert planted.metrics["top1"] < honest.metrics["top1"]


def test_the_test_part_is_not_read_before_the_choice_is_made(messages):
    _, subject = evaluate()
    assert subject.read == ["train", "eval"]
    assert messages[-1].startswith("linear: lr ")
    assert subject.read_at_decision == ["train"]


def test_the_training_features_outside_the_held_out_part_alone_fit_the_sweep():
    """Wrong labels on the held-out images must not change the weights that are judged on them."""
    data = clusters(200, 4)
    fit, held = stratified_split(data.labels, 0.1, 0)
    wrong = data.labels.clone()
    wrong[held] = (wrong[held] + 1) % 4
    first, _ = fitted(data.features, data.labels, fit, 4, [0.1], [True])
    second, _ = fitted(data.features, wrong, fit, 4, [0.1], [True])
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.mean, second.mean)


def test_a_result_is_plain_data_with_its_protocol_and_beats_chance():
    result, _ = evaluate()
    json.dumps([result.protocol, result.details], allow_nan=False)
    assert result.metrics["top1"] > 0.6
    assert result.protocol["chosen_lr"] == result.details["chosen"]["lr"]
    assert (result.protocol["train_images"], result.protocol["eval_images"]) == (200, 60)
    assert len(result.details["sweep"]) == 20
    for name, measured in (("curve", True), ("final_curve", False)):
        rows = result.details[name]
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
        assert rows[0]["lr"] == result.protocol["chosen_lr"] > rows[4]["lr"]
        assert rows[4]["loss"] < rows[0]["loss"]
        assert all((row["held_out_top1"] is not None) == measured for row in rows)
    assert result.details["curve"][-1]["held_out_top1"] == result.details["held_out_top1"]
    confusion = torch.tensor(result.details["confusion"])
    assert int(confusion.sum()) == 60
    assert float(confusion.diagonal().sum()) / 60 == pytest.approx(result.metrics["top1"])
    assert list(result.details["per_class"]) == ["class 0", "class 1", "class 2", "class 3"]


def test_the_best_held_out_accuracy_is_the_chosen_one():
    result, _ = evaluate()
    rows = [row for row in result.details["sweep"] if not row["diverged"]]
    assert result.details["held_out_top1"] == max(row["held_out_top1"] for row in rows)


def test_equal_seeds_give_equal_results_and_other_seeds_other_ones():
    first, second, other = evaluate()[0], evaluate()[0], evaluate(seed=1)[0]
    assert first == second
    assert first.details["curve"] != other.details["curve"]


def test_any_top_k_is_reported_and_one_that_is_always_right_is_not():
    data = {"classes": 7, "train": clusters(150, 7, spread=2.0), "test": clusters(90, 7, seed=1, spread=2.0)}
    metrics = evaluate(**data, top=[1, 2, 5, 7, 20])[0].metrics
    assert list(metrics) == ["top1", "top2", "top5"]
    assert metrics["top1"] < metrics["top2"] < metrics["top5"] < 1
    assert list(evaluate(top=3)[0].metrics) == ["top3"]


def test_a_single_rate_is_used_as_it_is_with_nothing_held_out():
    result, subject = evaluate(lr=0.03, standardize=True)
    assert result.protocol["fit_images"] == 200
    assert "sweep" not in result.details
    assert [row["held_out_top1"] for row in result.details["curve"]] == [None] * 5
    assert subject.decided == {}


def test_without_refit_the_chosen_classifier_is_judged_as_it_is():
    result, subject = evaluate(refit=False)
    assert result.protocol["fit_images"] == 180
    assert result.protocol["after_choice"] == "judged as it was chosen"
    assert "final_curve" not in result.details
    assert subject.decided == {"lr": result.protocol["chosen_lr"], "standardize": result.protocol["chosen_standardize"]}


def test_mocos_published_setting_is_what_its_options_make():
    options = LinearOptions.parse({"lr": 30, "standardize": False, "init": "normal", "schedule": {"name": "step"}})
    how = Training.of(options, 10_000)
    schedule = how.schedule_for(30.0, 10)
    values = [schedule(step) for step in (0, 599, 600, 799, 800, 999)]
    assert values == pytest.approx([30, 30, 3, 3, 0.3, 0.3])
    assert how.optimizer["weight_decay"] == 0


def test_simsiams_published_setting_scales_its_rate_once():
    asked = {"name": "larc", "clip": False, "exclude": [], "scale_lr": "batch/256"}
    options = LinearOptions.parse({"lr": 0.1, "optimizer": asked, "batch_size": 4096, "epochs": 90})
    how = Training.of(options, 10_000)
    assert how.base_lr(0.1) == pytest.approx(1.6)
    assert how.schedule_for(0.1, 2)(0) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": {"weight_decy": 1}}, "weight_decy: unknown option of 'sgd'; did you mean weight_decay"),
        ({"optimizer": {"name": "sdg"}}, "unknown optimizer 'sdg'; did you mean sgd"),
        ({"optimizer": {"name": "adam", "lr": 1}}, "takes no lr: give it beside the optimizer"),
        ({"schedule": {"warmup_epochs": -1}}, "warmup_epochs: should be greater than or equal to 0"),
        ({"views": {"crop_scale": [0.5, 1]}}, "views are for protocol=augmented"),
        ({"protocol": "augmented", "views": {"flipp": 1}}, "flipp: unknown option"),
        ({"protocol": "augmented", "views": {"preset": "simclr"}}, "a probe needs one view of an image, not 2"),
        ({"lr": []}, "at least 1 item"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(values, words):
    document = Document(values, {(): "command line"})
    with pytest.raises(ConfigError, match=words) as caught:
        validate(LinearOptions, values, "'linear'", document)
    assert len(str(caught.value).splitlines()) == 1


def test_a_part_of_a_section_changes_the_default_one():
    options = LinearOptions.parse({"optimizer": {"momentum": 0.5}, "schedule": {"final_lr": 0.001}})
    assert (options.optimizer["name"], options.optimizer["momentum"]) == ("sgd", 0.5)
    assert (options.schedule["name"], options.schedule["final_lr"]) == ("cosine", 0.001)
    assert LinearOptions.parse(options.plain()) == options


def test_a_warm_up_longer_than_the_training_is_a_user_error():
    with pytest.raises(UserError, match=r"warm-up of 9 epochs .* is longer than the run"):
        evaluate(schedule={"warmup_epochs": 9})


def test_rates_that_all_diverge_and_single_images_are_user_errors():
    with pytest.raises(UserError, match="every learning rate diverged"):
        evaluate(lr=[1e38, 3e38], standardize=[False])
    with pytest.raises(UserError, match=r"with lr 1e\+38 it diverged"):
        evaluate(lr=[1e38], standardize=[False])
    single = FeatureSet(torch.randn(4, 5), torch.arange(4))
    with pytest.raises(UserError, match="held out"):
        evaluate(train=single)
