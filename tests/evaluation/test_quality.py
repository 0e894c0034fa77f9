"""How much of their space features use."""

from __future__ import annotations

import math

import pytest
import torch

from sslcli.evaluation.quality import effective_rank, feature_std, rank_me


def random_features(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_feature_std_is_one_on_the_sphere_and_zero_where_all_are_alike():
    assert float(feature_std(random_features(4000, 32))) == pytest.approx(1.0, abs=0.02)
    assert float(feature_std(random_features(1, 32).expand(50, 32))) == pytest.approx(0.0, abs=1e-6)


def test_feature_std_does_not_depend_on_the_length_of_the_features():
    x = random_features(100, 8)
    length = torch.arange(1, 101).unsqueeze(1)
    torch.testing.assert_close(feature_std(x * length), feature_std(x))


def test_feature_std_equals_a_literal_loop():
    x = random_features(7, 3).double()
    rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x.tolist()]
    total = 0.0
    for d in range(3):
        column = [row[d] for row in rows]
        mean = sum(column) / 7
        total += math.sqrt(sum((v - mean) ** 2 for v in column) / 7)
    assert float(feature_std(x)) == pytest.approx(total / 3 * math.sqrt(3), rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_ranks_equal_their_definition_by_singular_values(shape):
    x = random_features(*shape).double() + 3
    eigenvalues = torch.linalg.svdvals(x - x.mean(dim=0)).square().tolist()
    p = [v / sum(eigenvalues) for v in eigenvalues]
    assert float(effective_rank(x)) == pytest.approx(math.exp(-sum(v * math.log(v) for v in p if v > 0)), rel=1e-6)
    sigma = torch.linalg.svdvals(x).tolist()
    q = [v / sum(sigma) + 1e-7 for v in sigma]
    assert float(rank_me(x)) == pytest.approx(math.exp(-sum(v * math.log(v) for v in q)), rel=1e-6)


def test_effective_rank_counts_the_directions_in_use():
    flat = random_features(500, 3) @ random_features(3, 64, seed=1).div(8)
    assert 1.5 < float(effective_rank(flat + 5)) < 3.01
    line = random_features(500, 1) * random_features(1, 64, seed=1)
    assert float(effective_rank(line + 5)) == pytest.approx(1.0, abs=1e-3)
    assert float(effective_rank(torch.ones(50, 8))) == pytest.approx(1.0)


def test_features_that_are_not_finite_give_nan_and_no_error():
    x = random_features(20, 4)
    x[3, 2] = torch.inf
    assert math.isnan(float(effective_rank(x)))
    assert math.isnan(float(rank_me(x)))
    assert math.isnan(float(feature_std(x)))
