"""NT-Xent and its monitors against literal transcriptions, and one of several processes."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from literal import cosine, found, mean, rows
from torch import Tensor

from sslcli.losses import nt_xent, nt_xent_and_metrics


def literal_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, in its numbering: images 2k−1 and 2k (here 2k and 2k+1) are a positive pair."""
    z = [row for both in zip(z1.tolist(), z2.tolist(), strict=True) for row in both]
    total = 0.0
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        denominator = sum(math.exp(cosine(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        total += -math.log(math.exp(cosine(z[i], z[j]) / temperature) / denominator)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_the_papers_equation(temperature: float) -> None:
    z1, z2 = rows(2, 5, 4)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(literal_nt_xent(z1, z2, temperature), rel=1e-12)


def test_the_order_of_the_views_does_not_matter() -> None:
    z1, z2 = rows(2, 5, 4)
    torch.testing.assert_close(nt_xent(z2, z1, 0.5), nt_xent(z1, z2, 0.5))


def test_a_batch_of_one_image_has_loss_zero_and_no_gradient() -> None:
    z = rows(2, 1, 4).requires_grad_()
    loss, metrics = nt_xent_and_metrics(z[0], z[1], 0.5)
    loss.backward()
    assert loss.item() == metrics["neg_cos"].item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_equal_embeddings_cost_the_logarithm_of_the_candidates_and_no_positive_is_found() -> None:
    z = torch.ones(4, 3, dtype=torch.float64)
    loss, metrics = nt_xent_and_metrics(z, z, 0.1)
    assert loss.item() == pytest.approx(math.log(7))
    assert metrics["contrast_top1"].item() == metrics["contrast_top5"].item() == 0


def test_the_metrics_are_shares_and_means_over_all_pairs() -> None:
    z1, noise = rows(2, 9, 4)
    z2 = 0.8 * z1 + noise  # some positives are near, some are not
    z, image = [*z1.tolist(), *z2.tolist()], [*range(9), *range(9)]
    others = [[cosine(z[i], z[k]) for k in range(18) if image[i] != image[k]] for i in range(18)]
    positive = [cosine(z[i], z[(i + 9) % 18]) for i in range(18)]
    expected = found(list(zip(positive, others, strict=True)))
    assert 0 < expected["contrast_top1"] < expected["contrast_top5"] < 1
    expected |= {"pos_cos": mean(positive), "neg_cos": mean([c for row in others for c in row])}
    metrics = nt_xent_and_metrics(z1, z2, 0.5)[1]
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_compares_its_own_rows_with_everyone_s(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The loss of one of three processes, the others' rows given: the offset of labels and of the masked diagonal."""
    z1, z2 = rows(2, 6, 4)
    module = sys.modules["sslcli.losses.nt_xent"]
    blocks = [torch.cat((z1[2 * r : 2 * r + 2], z2[2 * r : 2 * r + 2])) for r in range(3)]
    unit = F.normalize(torch.cat(blocks), dim=1)
    monkeypatch.setattr(module, "all_gather", lambda x, gradient: unit)
    monkeypatch.setattr(module, "rank", lambda: rank)
    own = slice(2 * rank, 2 * rank + 2)
    loss, total, everyone = nt_xent(z1[own], z2[own], 0.5).item(), 0.0, unit.tolist()
    for i in range(4 * rank, 4 * rank + 4):
        j = 4 * rank + (i - 4 * rank + 2) % 4
        denominator = sum(math.exp(cosine(everyone[i], everyone[k]) / 0.5) for k in range(12) if k != i)
        total += -math.log(math.exp(cosine(everyone[i], everyone[j]) / 0.5) / denominator)
    assert loss == pytest.approx(total / 4, rel=1e-12)
