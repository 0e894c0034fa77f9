"""Which view meets which, and the monitors of positive and negative pairs against loops over the pairs."""

from __future__ import annotations

import pytest
import torch

from sslcli.modules.pairs import prediction_cosines, target_pairs, view_pairs


def test_prediction_cosines_are_the_means_over_all_pairs() -> None:
    torch.manual_seed(0)
    directions = [(torch.randn(5, 3), torch.randn(5, 3)) for _ in range(2)]
    positive, negative = [], []
    for a, b in directions:
        for i in range(5):
            for j in range(5):
                cosine = (a[i] @ b[j] / (a[i].norm() * b[j].norm())).item()
                (positive if i == j else negative).append(cosine)
    result = prediction_cosines(*directions)
    assert result["pos_cos"].item() == pytest.approx(sum(positive) / 10, abs=1e-6)
    assert result["neg_cos"].item() == pytest.approx(sum(negative) / 40, abs=1e-6)


def test_prediction_cosines_carry_no_gradient_and_stay_defined_for_a_batch_of_one() -> None:
    result = prediction_cosines((torch.ones(1, 3, requires_grad=True), torch.ones(1, 3)))
    assert not result["pos_cos"].requires_grad
    assert result["pos_cos"].item() == pytest.approx(1)
    assert result["neg_cos"].item() == pytest.approx(0, abs=1e-6)


def test_two_views_make_one_pair_or_one_in_each_direction() -> None:
    assert view_pairs(2, 2) == [(0, 1)]
    assert target_pairs(2, 2) == [(0, 1), (1, 0)]


def test_local_views_meet_the_global_ones_and_not_each_other() -> None:
    views, global_views = 5, 2
    pairs = {frozenset(pair) for pair in view_pairs(views, global_views)}
    assert len(pairs) == len(view_pairs(views, global_views)) == 1 + 2 * 3
    assert all(min(pair) < global_views for pair in pairs)
    directed = target_pairs(views, global_views)
    assert len(set(directed)) == len(directed) == 2 * 1 + 3 * 2
    assert all(target < global_views and target != view for view, target in directed)


def test_three_global_views_meet_each_other() -> None:
    assert view_pairs(3, 3) == [(0, 1), (0, 2), (1, 2)]
    assert len(target_pairs(3, 3)) == 6
