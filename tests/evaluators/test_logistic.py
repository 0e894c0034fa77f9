"""Logistic regression reaches the optimum that scikit-learn reaches."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation_helpers import PlainSubject, clusters

import sslcli.evaluators.logistic as logistic
from sslcli.evaluators.logistic import LogisticOptions, LogisticRegression, fit_logistic


def evaluate(subject, **options):
    return LogisticRegression(LogisticOptions.parse(options)).evaluate(subject)


def literal_objective(features, labels, weight, bias, C):
    """Loops in float64: Σ cross-entropy + ‖W‖²/(2C), over the number of images."""
    total = 0.0
    for x, y in zip(features.double().tolist(), labels.tolist(), strict=True):
        scores = [
            b + sum(v * w for v, w in zip(x, column, strict=True)) for column, b in zip(weight, bias, strict=True)
        ]
        top = max(scores)
        total += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[y]
    return (total + sum(w * w for column in weight for w in column) / (2 * C)) / len(labels)


def test_the_objective_is_the_literal_one_and_nothing_near_is_lower(monkeypatch):
    monkeypatch.setattr(logistic, "BLOCK", 5 * 7)  # several blocks, the last one smaller
    data = clusters(40, 3)
    model = fit_logistic(data.features, data.labels, 3, 0.5, tolerance=1e-8)
    columns, bias = model.weight.T.tolist(), model.bias.tolist()
    assert model.objective == pytest.approx(literal_objective(data.features, data.labels, columns, bias, 0.5), rel=1e-9)
    assert model.gradient <= 1e-8
    for index in range(3):
        for step in (-1e-3, 1e-3):
            other = [list(column) for column in columns]
            other[index][index] += step
            assert literal_objective(data.features, data.labels, other, bias, 0.5) > model.objective


@pytest.mark.parametrize("C", [0.01, 1.0, pytest.param(100.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("standardize", [False, True])
def test_it_finds_the_optimum_of_scikit_learn(C, standardize):
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    train, test = clusters(200, 4), clusters(60, 4, seed=1)
    x, x_test = (part.features.double().numpy() for part in (train, test))
    scaler = preprocessing.StandardScaler(with_std=standardize).fit(x)
    theirs = linear_model.LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(x), train.labels.numpy())
    ours = fit_logistic(train.features, train.labels, 4, C, standardize=standardize, iterations=10_000, tolerance=1e-8)
    coefficients = torch.from_numpy(theirs.coef_.T / scaler.scale_[:, None] if standardize else theirs.coef_.T)
    torch.testing.assert_close(ours.weight, coefficients, rtol=1e-3, atol=1e-4)
    probabilities = torch.from_numpy(theirs.predict_proba(scaler.transform(x_test)))
    scores = ours.scores(test.features)
    torch.testing.assert_close(scores.softmax(dim=1), probabilities, rtol=0, atol=1e-3)
    predicted = theirs.predict(scaler.transform(x_test))
    assert float((scores.argmax(dim=1) == test.labels).double().mean()) == (predicted == test.labels.numpy()).mean()


@pytest.mark.parametrize("standardize", [False, True])
def test_the_starting_point_does_not_change_the_optimum(standardize):
    data = clusters(80, 3)
    cold = fit_logistic(data.features, data.labels, 3, 10.0, standardize=standardize, tolerance=1e-8)
    first = fit_logistic(data.features, data.labels, 3, 1.0, standardize=standardize)
    warm = fit_logistic(data.features, data.labels, 3, 10.0, standardize=standardize, tolerance=1e-8, start=first)
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-3, atol=1e-4)
    again = fit_logistic(data.features, data.labels, 3, 10.0, standardize=standardize, tolerance=1e-7, start=cold)
    assert again.iterations <= 1
    torch.testing.assert_close(again.bias, cold.bias)


def test_a_constant_feature_does_no_harm():
    data = clusters(60, 3)
    wide = torch.cat([data.features, torch.full((60, 1), 0.1)], dim=1)
    with_it = fit_logistic(wide, data.labels, 3, 1.0, standardize=True, tolerance=1e-9)
    without = fit_logistic(data.features, data.labels, 3, 1.0, standardize=True, tolerance=1e-9)
    assert with_it.weight[-1].abs().max() == 0
    torch.testing.assert_close(with_it.weight[:-1], without.weight)


def test_separable_classes_have_an_optimum_too():
    features = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    model = fit_logistic(features, torch.tensor([0, 0, 1, 1]), 2, 1000.0)
    assert bool(torch.isfinite(model.weight).all())
    assert model.gradient <= 1e-6


def test_c_is_chosen_on_held_out_training_images():
    subject = PlainSubject(clusters(120, 4, spread=2.0), clusters(60, 4, seed=1, spread=2.0), 4)
    result = evaluate(subject, C=[0.1, 0.001, 10.0])
    rows = result.details["sweep"]
    assert [row["C"] for row in rows] == [0.001, 0.1, 10.0]
    best = max(rows, key=lambda row: (row["held_out_top1"], -row["held_out_loss"]))
    assert result.protocol["chosen_C"] == best["C"]
    assert result.protocol["held_out_images"] == 11
    assert result.protocol["converged"] is True


def test_a_single_c_is_fitted_on_all_training_images():
    train, test = clusters(120, 4), clusters(60, 4, seed=1)
    result = evaluate(PlainSubject(train, test, 4), C=[1.0])
    model = fit_logistic(train.features, train.labels, 4, 1.0)
    expected = float((model.scores(test.features).argmax(dim=1) == test.labels).double().mean())
    assert result.metrics == {"top1": expected}


def test_too_few_iterations_are_reported(messages):
    subject = PlainSubject(clusters(120, 4), clusters(60, 4, seed=1), 4)
    result = evaluate(subject, C=[100.0], iterations=2)
    assert result.protocol["converged"] is False
    assert "optimum not reached after 2 iterations" in messages[-1]
