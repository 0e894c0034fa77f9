"""How much of their space features use."""

from __future__ import annotations

import math

import pytest
import torch

import sslcli.evaluation.quality as quality
from sslcli.evaluation.quality import alignment, effective_rank, feature_std, rank_me, roy_vetterli_rank, uniformity


def random_features(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_feature_std_equals_a_literal_loop_and_is_one_on_the_sphere():
    x = random_features(7, 3).double()
    rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x.tolist()]
    total = 0.0
    for d in range(3):
        column = [row[d] for row in rows]
        mean = sum(column) / 7
        total += math.sqrt(sum((v - mean) ** 2 for v in column) / 7)
    assert float(feature_std(x)) == pytest.approx(total / 3 * math.sqrt(3), rel=1e-5)
    assert float(feature_std(random_features(4000, 32))) == pytest.approx(1.0, abs=0.02)
    assert float(feature_std(random_features(1, 32).expand(50, 32))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (300, 24)])
def test_ranks_equal_their_definition_by_singular_values(shape):
    x = random_features(*shape).double() + 3
    if shape[0] == 300:
        x[:, 3:] = 0  # most singular values are zero
    eigenvalues = torch.linalg.svdvals(x - x.mean(dim=0)).square().tolist()
    p = [v / sum(eigenvalues) for v in eigenvalues]
    assert float(effective_rank(x)) == pytest.approx(math.exp(-sum(v * math.log(v) for v in p if v > 0)), rel=1e-6)
    root = [math.sqrt(v) for v in eigenvalues]
    r = [v / sum(root) for v in root]
    roy_vetterli = math.exp(-sum(v * math.log(v) for v in r if v > 0))
    assert float(roy_vetterli_rank(x)) == pytest.approx(roy_vetterli, rel=1e-6)
    sigma = torch.linalg.svdvals(x).tolist()
    q = [v / sum(sigma) + 1e-7 for v in sigma]
    assert float(rank_me(x)) == pytest.approx(math.exp(-sum(v * math.log(v) for v in q)), rel=1e-6)


def test_effective_rank_counts_the_directions_in_use():
    flat = random_features(500, 3) @ random_features(3, 64, seed=1).div(8)
    assert 1.5 < float(effective_rank(flat + 5)) < 3.01
    line = random_features(500, 1) * random_features(1, 64, seed=1)
    assert float(effective_rank(line + 5)) == pytest.approx(1.0, abs=1e-3)
    assert float(effective_rank(torch.ones(50, 8))) == pytest.approx(1.0)


def test_the_rank_of_eigenvalues_is_not_roy_and_vetterlis():
    """Two directions, one of them three times as long: shares 0.9 and 0.1 of the variance, 0.75 and 0.25 of σ."""
    x = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert float(effective_rank(x)) == pytest.approx(1.3842, abs=1e-4)
    assert float(roy_vetterli_rank(x)) == pytest.approx(1.7548, abs=1e-4)
    assert float(roy_vetterli_rank(torch.ones(50, 8))) == pytest.approx(1.0)


def test_features_that_are_not_finite_give_nan_and_no_error():
    x = random_features(20, 4)
    x[3, 2] = torch.inf
    assert math.isnan(float(effective_rank(x)))
    assert math.isnan(float(roy_vetterli_rank(x)))
    assert math.isnan(float(rank_me(x)))
    assert math.isnan(float(feature_std(x)))


def literal_uniformity(z, t):
    rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z.double().tolist()]
    kernel = [
        math.exp(-t * sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)))
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
    ]
    return math.log(sum(kernel) / len(kernel))


@pytest.mark.parametrize("block", [1, 17 * 5, 1 << 23])
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_is_its_formula_whatever_the_block(t, block, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", block)
    z = random_features(17, 6) + 0.5
    assert float(uniformity(z, t)) == pytest.approx(literal_uniformity(z, t), rel=1e-5)


def test_alignment_is_its_formula():
    z1, z2 = random_features(9, 4), random_features(9, 4, seed=1)
    unit = [[[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z.double().tolist()] for z in (z1, z2)]
    for alpha in (1.0, 2.0):
        pairs = zip(*unit, strict=True)
        terms = [math.sqrt(sum((a - b) ** 2 for a, b in zip(p, q, strict=True))) ** alpha for p, q in pairs]
        assert float(alignment(z1, z2, alpha)) == pytest.approx(sum(terms) / 9, rel=1e-9)


def test_alignment_and_uniformity_of_extreme_features():
    z = random_features(2000, 512)
    assert float(alignment(z, 3 * z)) == pytest.approx(0, abs=1e-12)
    assert float(alignment(z, -z)) == pytest.approx(4)
    assert float(uniformity(torch.ones(50, 8))) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(z)) == pytest.approx(-4, abs=0.1)
    z[0] = torch.nan
    assert math.isnan(float(uniformity(z)))
