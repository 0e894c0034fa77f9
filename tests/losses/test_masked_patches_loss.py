"""The losses of predictions for hidden patches, beside what their authors compute, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from literal import mean, rows

from sslcli.losses import (
    masked_features,
    masked_features_and_metrics,
    masked_pixels,
    masked_pixels_and_metrics,
)

N, M, P = 3, 4, 12


def literal_pixels(prediction: torch.Tensor, pixels: torch.Tensor, normalize: bool) -> tuple[float, float]:
    """The loss, and what predicting 0 gets."""
    errors, zeros = [], []
    for image, hidden in zip(prediction.tolist(), pixels.tolist(), strict=True):
        for predicted, patch in zip(image, hidden, strict=True):
            if normalize:
                center = mean(patch)
                variance = sum((x - center) ** 2 for x in patch) / (len(patch) - 1)
                patch = [(x - center) / math.sqrt(variance + 1e-6) for x in patch]
            errors.append(mean([(p - x) ** 2 for p, x in zip(predicted, patch, strict=True)]))
            zeros.append(mean([x * x for x in patch]))
    return mean(errors), mean(zeros)


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_pixels_is_the_formula(normalize: bool) -> None:
    prediction, pixels = rows(N, M, P), 3 * rows(N, M, P, seed=1) + 2
    pixels[0, 0] = 5.0  # a patch without contrast
    expected, zero = literal_pixels(prediction, pixels, normalize)
    loss, metrics = masked_pixels_and_metrics(prediction, pixels, normalize)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert metrics["explained"].item() == pytest.approx(1 - expected / zero, rel=1e-12)
    assert masked_pixels(torch.zeros_like(pixels), pixels, normalize).item() == pytest.approx(zero, rel=1e-12)


def test_predicting_0_gets_1_and_brightness_and_contrast_of_a_patch_do_not_count() -> None:
    pixels = rows(N, M, 768, seed=1)
    assert masked_pixels(torch.zeros_like(pixels), pixels).item() == pytest.approx(1, abs=2e-3)
    prediction = rows(N, M, 768)
    other = pixels * rows(N, M, 1, seed=2).exp() + rows(N, M, 1, seed=3)
    torch.testing.assert_close(masked_pixels(prediction, other), masked_pixels(prediction, pixels), rtol=1e-4, atol=0)


def test_masked_features_is_the_formula() -> None:
    prediction, features = 2 * rows(N, M, P), 3 * rows(N, M, P, seed=1) + 1
    weights = rows(N, M, seed=2).abs()
    weights[0, 1] = 0
    loss, targets, total = 0.0, [], weights.sum().item()
    for image in range(N):
        for patch in range(M):
            values = features[image, patch].tolist()
            center, weight = mean(values), weights[image, patch].item() / total
            spread = math.sqrt(mean([(x - center) ** 2 for x in values]) + 1e-5)
            target = [(x - center) / spread for x in values]
            gaps = [abs(p - t) for p, t in zip(prediction[image, patch].tolist(), target, strict=True)]
            loss += weight * mean([gap * gap / 2 if gap < 1 else gap - 0.5 for gap in gaps])
            targets.append((weight, target, mean([gap * gap for gap in gaps])))
    center = [sum(weight * target[d] for weight, target, _ in targets) for d in range(P)]
    variance = sum(
        weight * mean([(t - c) ** 2 for t, c in zip(target, center, strict=True)]) for weight, target, _ in targets
    )
    error = sum(weight * gap for weight, _, gap in targets)
    found, metrics = masked_features_and_metrics(prediction, features, weights)
    assert found.item() == pytest.approx(loss, rel=1e-12)
    assert masked_features(prediction, features, 7 * weights).item() == pytest.approx(loss, rel=1e-12)
    assert metrics["target_std"].item() == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert metrics["explained"].item() == pytest.approx(1 - error / variance, rel=1e-9)


def test_features_that_are_the_same_everywhere_have_no_spread() -> None:
    same = rows(1, 1, P).expand(N, M, P)
    metrics = masked_features_and_metrics(rows(N, M, P), same, torch.ones(N, M))[1]
    assert metrics["target_std"].item() == pytest.approx(0, abs=1e-6)
    assert metrics["explained"].isfinite()
