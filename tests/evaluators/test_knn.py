"""Weighted k nearest neighbors, compared with a literal transcription."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation_helpers import PlainSubject, clusters

import sslcli.evaluators.knn as knn
from sslcli.evaluation.scores import accuracy, in_top, summarize


def literal_knn(bank, bank_labels, features, classes, k, temperature):
    """Loops in float64: normalize, sort by cosine, sum exp(s / τ) per class."""
    result = []
    for f in features.double().tolist():
        norm = math.sqrt(sum(v * v for v in f))
        similar = []
        for b, label in zip(bank.double().tolist(), bank_labels.tolist(), strict=True):
            length = math.sqrt(sum(v * v for v in b))
            similar.append((sum(v * w for v, w in zip(f, b, strict=True)) / norm / length, label))
        votes = [0.0] * classes
        for s, label in sorted(similar, reverse=True)[:k]:
            votes[label] += math.exp(s / temperature)
        result.append(votes)
    return torch.tensor(result, dtype=torch.float64)


def predicted(bank, bank_labels, features, classes, k, temperature):
    """Each class's share of the votes."""
    similarity, index = knn.nearest(bank, features, k)
    votes = knn.vote(similarity, bank_labels[index], classes, temperature)
    votes[votes == -torch.inf] = 0
    return votes / votes.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.1), (1000, 0.5)])
def test_votes_equal_the_literal_ones_up_to_a_factor_per_row(k, temperature, monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 60 * 4)  # several blocks, the last one smaller
    bank, test = clusters(60, 4), clusters(11, 4, seed=1)
    found = predicted(bank.features, bank.labels, test.features, 4, k, temperature)
    expected = literal_knn(bank.features, bank.labels, test.features, 4, k, temperature)
    torch.testing.assert_close(found, expected / expected.sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_a_small_temperature_does_not_overflow_and_zeros_do_not_give_nan():
    scores = predicted(torch.zeros(10, 3), torch.arange(10) % 2, torch.zeros(2, 3), 2, 4, 0.07)
    assert bool(torch.isfinite(scores).all())
    bank, test = clusters(60, 4), clusters(11, 4, seed=1)
    scores = predicted(bank.features, bank.labels, test.features, 4, 20, 1e-4)
    assert bool(torch.isfinite(scores).all())
    nearest = knn.nearest(bank.features, test.features, 1)[1][:, 0]
    assert torch.equal(scores.argmax(dim=1), bank.labels[nearest])


def test_it_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    bank, test = clusters(80, 4), clusters(30, 4, seed=1)
    unit = [torch.nn.functional.normalize(x.features, dim=1).double().numpy() for x in (bank, test)]
    model = neighbors.KNeighborsClassifier(10, weights=lambda d: torch.from_numpy((1 - d**2 / 2) / 0.1).exp().numpy())
    model.fit(unit[0], bank.labels.numpy())
    scores = predicted(bank.features, bank.labels, test.features, 4, 10, 0.1)
    assert scores.argmax(dim=1).tolist() == model.predict(unit[1]).tolist()
    torch.testing.assert_close(scores, torch.from_numpy(model.predict_proba(unit[1])), rtol=0, atol=1e-4)


def test_accuracy_counts_images_and_not_blocks(monkeypatch):
    bank, test = clusters(60, 4), clusters(13, 4, seed=1, spread=2.0)
    whole = knn.KNN(knn.KNNOptions()).evaluate(PlainSubject(bank, test, 4))
    monkeypatch.setattr(knn, "BLOCK", 60 * 12)  # twelve images and one
    parts = knn.KNN(knn.KNNOptions()).evaluate(PlainSubject(bank, test, 4))
    scores = literal_knn(bank.features, bank.labels, test.features, 4, 20, 0.07)
    expected = float((scores.argmax(dim=1) == test.labels).double().mean())
    assert 0 < expected < 1
    assert whole.metrics == parts.metrics == {"top1": expected}


def test_every_setting_is_in_the_details_and_a_cut_k_in_the_protocol():
    options = knn.KNN.Options.parse({"k": [200, 5], "temperature": 0.1})
    result = knn.KNN(options).evaluate(PlainSubject(clusters(60, 7), clusters(13, 7, seed=1), 7))
    assert [(row["k"], row["temperature"]) for row in result.details["settings"]] == [(60, 0.1), (5, 0.1)]
    assert (result.protocol["k"], result.protocol["k_asked_for"]) == (60, 200)


def test_the_metrics_and_the_confusion_matrix_are_those_of_the_first_setting():
    bank, test = clusters(60, 7), clusters(35, 7, seed=1, spread=1.5)
    options = knn.KNNOptions(k=(5,), temperature=(0.1, 0.2), top=(1, 2, 3, 7))
    result = knn.KNN(options).evaluate(PlainSubject(bank, test, 7))
    assert list(result.metrics) == ["top1", "top2", "top3"]  # the label is always among seven of seven classes
    scores = literal_knn(bank.features, bank.labels, test.features, 7, 5, 0.1)
    order = scores.masked_fill(scores == 0, -math.inf).argsort(dim=1, descending=True, stable=True)
    for k, value in zip((1, 2, 3), result.metrics.values(), strict=True):
        right = [
            int(label) in row[:k] and votes[int(label)] > 0
            for row, label, votes in zip(order.tolist(), test.labels, scores, strict=True)
        ]
        assert value == pytest.approx(sum(right) / 35)
    matrix = torch.tensor(result.details["confusion"])
    assert matrix.sum(dim=1).tolist() == torch.bincount(test.labels, minlength=7).tolist()
    assert float(matrix.diagonal().sum()) / 35 == pytest.approx(result.metrics["top1"])
    assert list(result.details["per_class"]) == [f"class {i}" for i in range(7)]


def test_a_class_without_a_vote_is_in_no_top_5():
    similarity = torch.tensor([[0.9, 0.8]])
    scores = knn.vote(similarity, torch.tensor([[6, 5]]), 7, 0.1)
    assert accuracy(scores, torch.tensor([0]), 5) == 0.0
    assert accuracy(scores, torch.tensor([5]), 5) == 1.0


def test_of_equal_scores_the_lower_class_comes_first_and_a_nan_is_never_right():
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [torch.nan, 0.2, 0.1], [0.3, torch.nan, 0.1]])
    labels = torch.tensor([0, 1, 0, 0])
    assert in_top(scores, labels, 1).tolist() == [True, False, False, False]
    assert in_top(scores, labels, 2).tolist() == [True, True, False, False]
    assert in_top(torch.stack([scores, scores.flip(-1)]), labels, 3).shape == (2, 4)


def test_confusion_has_the_true_class_in_its_rows():
    metrics, details = summarize(torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 0, 1, 1]), (1, 5), ("a", "b", "c"))
    assert metrics == {"top1": 0.5}
    assert details["confusion"] == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert details["per_class"] == {"a": 0.5, "b": 0.5, "c": None}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_neighbors_on_a_gpu_are_those_of_the_cpu_even_with_tf32_on():
    g = torch.Generator().manual_seed(0)
    bank, test = torch.rand(500, 64, generator=g), torch.rand(100, 64, generator=g)
    torch.set_float32_matmul_precision("high")
    found = knn.nearest(bank.cuda(), test.cuda(), 5)[0].cpu()
    torch.testing.assert_close(found, knn.nearest(bank, test, 5)[0], rtol=0, atol=2e-6)
