"""DCL and DCLW against a literal transcription, and what the decoupling is for: the gradient of easy pairs."""

from __future__ import annotations

import math

import pytest
import torch
from literal import cosine, found, mean, rows
from torch import Tensor

from sslcli.losses import dcl, nt_xent, unit_rows
from sslcli.losses.dcl import dcl_and_metrics


def literal_dcl(z: Tensor, temperature: float, sigma: float | None) -> float:
    """Section 3 of the paper, anchor by anchor; with more than two views the mean over an anchor's positives."""
    images, views = range(z.shape[0]), range(z.shape[1])
    total = 0.0
    for i in images:
        for v in views:
            anchor = z[i, v].tolist()
            negatives = [cosine(anchor, z[k, w].tolist()) for k in images for w in views if k != i]
            pulls = []
            for p in views:
                if p != v:
                    weight = 1.0
                    if sigma is not None:
                        alike = [math.exp(cosine(z[n, v].tolist(), z[n, p].tolist()) / sigma) for n in images]
                        weight = 2 - alike[i] / mean(alike)
                    pulls.append(weight * cosine(anchor, z[i, p].tolist()) / temperature)
            total += -mean(pulls) + math.log(sum(math.exp(c / temperature) for c in negatives))
    return total / len(images) / len(views)


@pytest.mark.parametrize("sigma", [None, 0.5, 2.0])
@pytest.mark.parametrize("views", [2, 3])
def test_it_is_the_papers_formula(views: int, sigma: float | None) -> None:
    z = rows(5, views, 4)
    assert dcl(z, 0.2, sigma).item() == pytest.approx(literal_dcl(z, 0.2, sigma), rel=1e-12)


def test_the_positives_are_all_that_nt_xent_has_more_in_its_denominator() -> None:
    """−log(p/(p + n)) = −log p + log n + log(1 + p/n), anchor by anchor."""
    z = rows(5, 2, 4)
    u = unit_rows(z).flatten(0, 1)  # two rows of an image after each other
    weights = (u @ u.T / 0.2).exp()
    image = torch.arange(5).repeat_interleave(2)
    negative = torch.where(image[:, None] == image, 0, weights).sum(dim=1)
    positive = weights[torch.arange(10), torch.arange(10) ^ 1]
    more = (1 + positive / negative).log().mean()
    torch.testing.assert_close(nt_xent(z[:, 0], z[:, 1], 0.2), dcl(z, 0.2) + more)


def test_a_pair_that_is_found_already_keeps_its_pull() -> None:
    """NT-Xent's pull fades with the share of the positive in the softmax; that is what DCL removes."""
    base = torch.eye(4, dtype=torch.float64)
    z = torch.stack((base, base + 0.05 * rows(4, 4)), dim=1).requires_grad_()
    (ours,) = torch.autograd.grad(dcl(z, 0.1), z)
    (theirs,) = torch.autograd.grad(nt_xent(z[:, 0], z[:, 1], 0.1), z)
    assert ours.norm() > 50 * theirs.norm()


def test_weights_have_no_gradient_are_one_on_average_and_smaller_for_pairs_that_are_alike() -> None:
    z = rows(6, 2, 4).requires_grad_()
    (cosines,) = (unit_rows(z).prod(dim=1).sum(dim=1),)
    weights = 2 - 6 * (cosines / 0.5).softmax(dim=0)
    assert weights.mean().item() == pytest.approx(1)
    assert weights.argmin() == cosines.argmax()
    # DCLW is DCL but for (1 − w)·cos/τ, where w is a constant.
    expected = torch.autograd.grad(dcl(z, 0.2) + ((1 - weights.detach()) * cosines / 0.2).mean(), z)
    torch.testing.assert_close(torch.autograd.grad(dcl(z, 0.2, 0.5), z), expected)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_equal_embeddings_cost_the_logarithm_of_the_negatives_and_none_is_found(sigma: float | None) -> None:
    loss, metrics = dcl_and_metrics(torch.ones(4, 2, 3, dtype=torch.float64), 0.1, sigma)
    assert loss.item() == pytest.approx(math.log(6))
    assert metrics["contrast_top1"].item() == metrics["contrast_top5"].item() == 0


def test_the_metrics_are_those_of_nt_xent() -> None:
    z1, noise = rows(2, 9, 4)
    z = torch.stack((z1, 0.8 * z1 + noise), dim=1)
    positive, negatives = [], []
    for i in range(9):
        for v in range(2):
            anchor = z[i, v].tolist()
            positive.append(cosine(anchor, z[i, 1 - v].tolist()))
            negatives.append([cosine(anchor, z[k, w].tolist()) for k in range(9) for w in range(2) if k != i])
    expected = found(list(zip(positive, negatives, strict=True)))
    assert 0 < expected["contrast_top1"] < expected["contrast_top5"] < 1
    expected |= {"pos_cos": mean(positive), "neg_cos": mean([c for row in negatives for c in row])}
    metrics = dcl_and_metrics(z, 0.5)[1]
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-12)
    assert set(dcl_and_metrics(rows(4, 3, 5), 0.5)[1]) == {"pos_cos", "neg_cos"}


@pytest.mark.parametrize("shape", [(1, 2, 3), (4, 1, 3), (4, 3)])
def test_without_negatives_or_positives_it_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two images and two views or more"):
        dcl(torch.ones(shape), 0.1)
    with pytest.raises(ValueError, match="sigma must be positive, not 0"):
        dcl(torch.ones(4, 2, 3), 0.1, 0)
