"""The monitors of positive and negative pairs against loops over the pairs."""

from __future__ import annotations

import pytest
import torch

from sslcli.modules.pairs import prediction_cosines


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
