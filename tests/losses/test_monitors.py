"""The mean cosines of pairs of views against loops over all pairs, and means of losses with metrics."""

from __future__ import annotations

import pytest
import torch
from literal import cosine, mean, rows

from sslcli.losses import mean_cosines, mean_over


def test_mean_cosines_are_the_means_over_all_pairs() -> None:
    pairs = [(rows(5, 3, seed=s), rows(5, 3, seed=s + 1)) for s in (0, 2)]
    positive, negative = [], []
    for a, b in pairs:
        for i, first in enumerate(a.tolist()):
            for j, second in enumerate(b.tolist()):
                (positive if i == j else negative).append(cosine(first, second))
    found = mean_cosines(pairs)
    assert found["pos_cos"].item() == pytest.approx(mean(positive), abs=1e-6)
    assert found["neg_cos"].item() == pytest.approx(mean(negative), abs=1e-6)


def test_mean_cosines_carry_no_gradient_and_are_defined_for_a_batch_of_one() -> None:
    found = mean_cosines([(torch.ones(1, 3, requires_grad=True), torch.ones(1, 3))])
    assert not found["pos_cos"].requires_grad
    assert found["pos_cos"].item() == pytest.approx(1)
    assert found["neg_cos"].item() == pytest.approx(0, abs=1e-6)


def test_the_mean_over_results_is_that_of_the_losses_and_of_each_metric() -> None:
    losses = torch.tensor([1.0, 5.0], requires_grad=True)
    loss, metrics = mean_over([(losses[0], {"a": torch.tensor(2.0)}), (losses[1], {"a": torch.tensor(4.0)})])
    assert (loss.item(), metrics["a"].item()) == (3, 3)
    loss.backward()
    assert losses.grad.tolist() == [0.5, 0.5]
