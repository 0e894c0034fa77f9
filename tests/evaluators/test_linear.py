"""The linear probe: many heads trained at once equal one at a time; test images have no influence on the choice."""

from __future__ import annotations

import pytest
import torch
from evaluation_helpers import PlainSubject, clusters
from torch import nn

from sslcli.config.document import Document
from sslcli.config.options import validate
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.evaluation import FeatureSet
from sslcli.evaluators.linear import heads as linear_heads
from sslcli.evaluators.linear import updates as linear_updates
from sslcli.evaluators.linear.evaluator import Linear, LinearOptions
from sslcli.evaluators.linear.heads import accuracies, cached_batches, mean_losses, standardizations, train_heads
from sslcli.evaluators.probes.training import Training
from sslcli.randomness import permutation, seed_for


def training(name="sgd", schedule=None, init="zero", epochs=4, batch_size=16, **options):
    asked = LinearOptions.parse({"optimizer": {"name": name, **options}, "schedule": schedule or {}})
    return Training(asked.optimizer, asked.schedule, epochs, batch_size, init)


def fitted(features, labels, rows, rates, standardize, how, seed=0):
    """The heads, and their losses after each epoch."""
    batches = cached_batches(features, labels, rows, how.batch_size, seed)
    scalings = standardizations(features, rows, standardize)
    return train_heads(batches, -(-len(rows) // how.batch_size), scalings, 4, rates, how, seed)[:2]


def torch_head(features, labels, rows, rate, standardized, seed, nesterov):
    """The same training by torch's own layer, SGD and schedule, in float64."""
    x = features
    if standardized:
        x = (x - x[rows].mean(dim=0)) / (x[rows].var(dim=0, correction=0) + 1e-5).sqrt()
    layer = nn.Linear(x.shape[1], 4, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=1e-3, nesterov=nesterov)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 4 * -(-len(rows) // 16))
    curve = []
    for epoch in range(4):
        total = 0.0
        for batch in rows[permutation(seed_for(seed, 2), epoch, len(rows))].split(16):
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
    heads, losses = fitted(features, data.labels, rows, [0.01, 0.1], [False, standardized], how, 3)
    for r, rate in enumerate([0.01, 0.1]):
        layer, curve = torch_head(features, data.labels, rows, rate, standardized, 3, nesterov)
        torch.testing.assert_close(heads.weight[1, r], layer.weight.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(heads.bias[1, r], layer.bias.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(losses[:, 1, r], curve, rtol=1e-9, atol=0)


SETTINGS = {
    "sgd": {"weight_decay": 1e-3},
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
    rows, rates = torch.arange(100), [0.003, 0.1, 1.0, 1e30]  # the last one diverges
    joint, losses = fitted(data.features, data.labels, rows, rates, [False, True], how)
    for v, r in ((0, 0), (1, 1), (1, 2)):
        alone, own = fitted(data.features, data.labels, rows, [rates[r]], [bool(v)], how)
        torch.testing.assert_close(joint.weight[v, r], alone.weight[0, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(losses[:, v, r], own[:, 0, 0], rtol=1e-3, atol=1e-4)
    assert float(losses[-1, 1, :3].min()) < 0.9 * float(losses[0, 1, :3].min())


def test_sgd_on_all_heads_at_once_is_the_registered_sgd_head_by_head(monkeypatch):
    data = clusters(120, 4)
    how = training(weight_decay=0.1, final_weight_decay=0.5, nesterov=True, schedule={"warmup_epochs": 1})
    given = data.features.double(), data.labels, torch.arange(100), [0.03, 0.3], [False, True], how
    joint, _ = fitted(*given)
    monkeypatch.setattr(linear_updates, "SGD", None)
    single, _ = fitted(*given)
    torch.testing.assert_close(joint.weight, single.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(joint.bias, single.bias, rtol=1e-9, atol=1e-12)


def test_heads_are_measured_by_cross_entropy_and_argmax_whatever_the_blocks(monkeypatch):
    data = clusters(91, 4, spread=2.0)
    heads, _ = fitted(data.features, data.labels, torch.arange(60), [0.01, 0.1], [False, True], training())
    held_out = data.features[60:], data.labels[60:]
    top1, loss = accuracies(heads, *held_out), mean_losses(heads, *held_out)
    x = (data.features[60:] - heads.mean[1]) * heads.scale[1]
    logits = x @ heads.weight[1, 0].T + heads.bias[1, 0]
    assert float(top1[1, 0]) == pytest.approx(float((logits.argmax(dim=1) == data.labels[60:]).double().mean()))
    assert float(loss[1, 0]) == pytest.approx(float(nn.functional.cross_entropy(logits, data.labels[60:])), rel=1e-5)
    monkeypatch.setattr(linear_heads, "BLOCK", 4 * 4 * 30)  # blocks of 30 images and of 1
    torch.testing.assert_close(accuracies(heads, *held_out), top1, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean_losses(heads, *held_out), loss, rtol=1e-6, atol=0)


def evaluate(test=None, **options):
    subject = PlainSubject(clusters(200, 4), test or clusters(60, 4, seed=1), 4)
    return Linear(LinearOptions.parse({"epochs": 5, "batch_size": 32} | options)).evaluate(subject)


def test_the_test_labels_have_no_part_in_the_choice():
    """Held-out labels that fit and test labels that are permuted: a choice made on the test part would change."""
    test = clusters(60, 4, seed=1)
    right = evaluate(test)
    wrong = evaluate(FeatureSet(test.features, (test.labels + 1) % 4))
    for key in ("chosen", "sweep", "curve", "final_curve"):
        assert wrong.details[key] == right.details[key]
    assert wrong.metrics["top1"] < right.metrics["top1"]


def test_a_result_has_its_sweep_its_curves_and_its_confusion_matrix():
    result = evaluate()
    assert result.metrics["top1"] > 0.6
    assert result.protocol["chosen_lr"] == result.details["chosen"]["lr"]
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


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": {"weight_decy": 1}}, "weight_decy: unknown option of 'sgd'; did you mean weight_decay"),
        ({"optimizer": {"name": "sdg"}}, "unknown optimizer 'sdg'; did you mean sgd"),
        ({"optimizer": {"name": "adam", "lr": 1}}, "takes no lr: set it outside the optimizer section"),
        ({"schedule": {"warmup_epochs": -1}}, "warmup_epochs: should be greater than or equal to 0"),
        ({"views": {"crop_scale": [0.5, 1]}}, "views are for protocol=augmented"),
        ({"protocol": "augmented", "views": {"flipp": 1}}, "flipp: unknown option"),
        ({"protocol": "augmented", "views": {"preset": "simclr"}}, "a probe needs one view of an image, not 2"),
        ({"lr": []}, "at least 1 item"),
    ],
)
def test_wrong_options_are_reported_in_one_line(values, words):
    document = Document(values, {(): "command line"})
    with pytest.raises(ConfigError, match=words) as caught:
        validate(LinearOptions, values, "'linear'", document)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": {"warmup_epochs": 9}}, r"warm-up of 9 epochs .* is longer than the run"),
        ({"lr": [1e38, 3e38], "standardize": [False]}, "every learning rate diverged"),
        ({"lr": [1e38], "standardize": [False]}, r"linear: training with lr 1e\+38 diverged"),
    ],
)
def test_a_training_that_is_impossible_or_diverges_is_a_user_error(options, words):
    with pytest.raises(UserError, match=words):
        evaluate(**options)
