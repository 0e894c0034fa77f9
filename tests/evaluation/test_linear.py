"""The linear probe: many heads at once equal one at a time, and nothing of the test part leaks into the choice."""

from __future__ import annotations

import json

import pytest
import torch
from evaluation_helpers import PlainSubject, clusters
from torch import nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import FeatureSet
from sslcli.evaluation.linear import Linear, LinearOptions
from sslcli.evaluation.linear_heads import Recipe, best_head, judge_heads, stratified_split, train_heads
from sslcli.randomness import permutation, seed_for

RECIPE = Recipe(epochs=4, batch_size=16, momentum=0.9, weight_decay=1e-3)
OPTIONS = {"epochs": 5, "batch_size": 32}


def torch_head(features, labels, rows, classes, rate, standardised, recipe, seed):
    """The same training by torch's own layer, optimizer and schedule, in float64."""
    x = features.double()
    if standardised:
        x = (x - x[rows].mean(dim=0)) / (x[rows].var(dim=0, correction=0) + 1e-5).sqrt()
    layer = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    steps = -(-len(rows) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, recipe.epochs * steps)
    curve = []
    for epoch in range(recipe.epochs):
        total = 0.0
        for batch in rows[permutation(seed_for(seed, 2), epoch, len(rows))].split(recipe.batch_size):
            loss = nn.functional.cross_entropy(layer(x[batch]), labels[batch])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
            total += loss.item() * len(batch)
        curve.append(total / len(rows))
    return layer, torch.tensor(curve, dtype=torch.float64)


@pytest.mark.parametrize("standardised", [False, True])
def test_a_head_equals_torchs_own_sgd_in_float64(standardised):
    data = clusters(75, 4)
    rows = torch.arange(0, 75, 2)
    features = data.features.double()
    heads = train_heads(features, data.labels, rows, 4, [0.01, 0.1], [False, standardised], RECIPE, 3)
    for place, rate in enumerate([0.01, 0.1]):
        layer, curve = torch_head(features, data.labels, rows, 4, rate, standardised, RECIPE, 3)
        torch.testing.assert_close(heads.weight[1, :, place].T, layer.weight.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(heads.bias[1, place], layer.bias.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(heads.losses[:, 1, place], curve, rtol=1e-9, atol=0)


def test_the_joint_sweep_equals_a_run_of_the_chosen_rate_alone():
    data = clusters(120, 4)
    rows = torch.arange(100)
    joint = train_heads(data.features, data.labels, rows, 4, [0.001, 0.03, 1e30], [False, True], RECIPE, 0)
    assert not bool(torch.isfinite(joint.losses[:, :, 2]).all())  # a diverged neighbour
    alone = train_heads(data.features, data.labels, rows, 4, [0.03], [True], RECIPE, 0)
    torch.testing.assert_close(joint.weight[1, :, 1], alone.weight[0, :, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(joint.losses[:, 1, 1], alone.losses[:, 0, 0], rtol=1e-4, atol=1e-6)


def test_heads_are_judged_as_cross_entropy_and_argmax_judge_them():
    data = clusters(90, 4)
    heads = train_heads(data.features, data.labels, torch.arange(60), 4, [0.01, 0.1], [False, True], RECIPE, 0)
    top1, loss = judge_heads(heads, data.features[60:], data.labels[60:])
    x = (data.features[60:] - heads.mean[1]) * heads.scale[1]
    logits = x @ heads.weight[1, :, 0] + heads.bias[1, 0]
    assert float(top1[1, 0]) == pytest.approx(float((logits.argmax(dim=1) == data.labels[60:]).double().mean()))
    assert float(loss[1, 0]) == pytest.approx(float(nn.functional.cross_entropy(logits, data.labels[60:])), rel=1e-5)


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
        for key in ("chosen", "sweep", "loss_curve"):
            assert planted.details[key] == honest.details[key]
        assert planted.metrics["top1"] < honest.metrics["top1"]


def test_the_test_part_is_not_read_before_the_choice_is_made_and_told():
    _, subject = evaluate()
    assert subject.read == ["train", "eval"]
    choice, read_until_then = subject.told[-1]
    assert choice.startswith("linear: lr ")
    assert read_until_then == ["train"]


def test_the_training_features_outside_the_held_out_part_alone_fit_the_sweep():
    """Wrong labels on the held-out images must not change the weights that are judged on them."""
    data = clusters(200, 4)
    fit, held = stratified_split(data.labels, 0.1, 0)
    wrong = data.labels.clone()
    wrong[held] = (wrong[held] + 1) % 4
    first = train_heads(data.features, data.labels, fit, 4, [0.1], [True], RECIPE, 0)
    second = train_heads(data.features, wrong, fit, 4, [0.1], [True], RECIPE, 0)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.mean, second.mean)


def test_a_result_is_plain_data_with_its_protocol_and_beats_chance():
    result, _ = evaluate()
    json.dumps([result.protocol, result.details], allow_nan=False)
    assert result.metrics["top1"] > 0.6
    assert result.protocol["chosen_lr"] == result.details["chosen"]["lr"]
    assert (result.protocol["train_images"], result.protocol["eval_images"]) == (200, 60)
    assert len(result.details["sweep"]) == 20
    assert len(result.details["loss_curve"]) == 5
    confusion = torch.tensor(result.details["confusion"])
    assert int(confusion.sum()) == 60
    assert float(confusion.diagonal().sum()) / 60 == pytest.approx(result.metrics["top1"])
    assert list(result.details["per_class"]) == ["class 0", "class 1", "class 2", "class 3"]


def test_the_best_held_out_accuracy_is_the_chosen_one():
    result, _ = evaluate()
    rows = [row for row in result.details["sweep"] if not row["diverged"]]
    assert result.details["chosen"]["held_out_top1"] == max(row["held_out_top1"] for row in rows)


def test_equal_seeds_give_equal_results_and_other_seeds_other_ones():
    first, second, other = evaluate()[0], evaluate()[0], evaluate(seed=1)[0]
    assert first == second
    assert first.details["loss_curve"] != other.details["loss_curve"]


def test_repeats_are_averaged():
    result, _ = evaluate(
        seeds=3, classes=7, train=clusters(150, 7, spread=2.0), test=clusters(90, 7, seed=1, spread=2.0)
    )
    each = result.details["top1_of_each_seed"]
    assert len(each) == 3
    assert result.metrics["top1"] == pytest.approx(sum(each) / 3)
    assert result.metrics["top5"] > result.metrics["top1"]


def test_rates_that_all_diverge_and_single_images_are_user_errors():
    with pytest.raises(UserError, match="every learning rate diverged"):
        evaluate(lr=[1e38], standardise=[False])
    single = FeatureSet(torch.randn(4, 5), torch.arange(4))
    with pytest.raises(UserError, match="held out"):
        evaluate(train=single)
