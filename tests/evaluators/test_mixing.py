"""Mixup and CutMix against timm's, their draws against the distributions, and label smoothing against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from timm.data import mixup as timms
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from sslcli.evaluators.finetune.mixing import _GAMMA, Mixing, MixingOptions, beta, cut_box, draw_mixing
from sslcli.randomness import uniform

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 2, 2, 1, 0])
SCORES = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_timm(monkeypatch, share, cuts, center=(0, 0)):
    """timm's mixed images and its loss, with its draws given: the share, and the box's center."""
    corners = iter(center)
    monkeypatch.setattr(np.random, "randint", lambda *args, **kwargs: next(corners))
    mixup = timms.Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=5)
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (share, cuts))
    images, target = mixup(IMAGES.clone(), LABELS)
    return images, SoftTargetCrossEntropy()(SCORES, target.double())


def test_mixup_is_timms(monkeypatch):
    mixing = Mixing(0.3)
    images, loss = by_timm(monkeypatch, 0.3, False)
    torch.testing.assert_close(mixing.images(IMAGES), images)
    torch.testing.assert_close(mixing.loss(SCORES, LABELS, 0.1), loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("center", [(4, 4), (0, 7), (7, 3)])
def test_cutmix_is_timms_and_corrects_the_share_by_the_box_that_is_cut_off(monkeypatch, center):
    box = cut_box(8, 8, 0.75, center)  # a box of 4 × 4
    top, bottom, left, right = box
    mixing = Mixing(1 - (bottom - top) * (right - left) / 64, box)
    assert (mixing.share == 0.75) == (center == (4, 4))
    images, loss = by_timm(monkeypatch, 0.75, True, center)
    assert torch.equal(mixing.images(IMAGES), images)
    torch.testing.assert_close(mixing.loss(SCORES, LABELS, 0.1), loss, rtol=1e-6, atol=0)


def test_a_batch_that_is_not_mixed_stays_what_it_is():
    assert Mixing().images(IMAGES) is IMAGES
    expected = F.cross_entropy(SCORES, LABELS, label_smoothing=0.1)
    assert torch.equal(Mixing().loss(SCORES, LABELS, 0.1), expected)
    torch.testing.assert_close(LabelSmoothingCrossEntropy(0.1)(SCORES, LABELS), expected)
    assert torch.equal(Mixing().loss(SCORES, LABELS), F.cross_entropy(SCORES, LABELS))


def test_mixing_changes_no_image_in_place():
    kept = IMAGES.clone()
    Mixing(0.5).images(IMAGES)
    Mixing(0.9, (0, 2, 0, 3)).images(IMAGES)
    assert torch.equal(IMAGES, kept)


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 4.0])
def test_shares_are_distributed_as_beta(alpha):
    numbers = uniform(5, torch.arange(2000), count=2 * _GAMMA).view(2000, 2, _GAMMA)
    stats = pytest.importorskip("scipy.stats")  # imported here: it takes a second
    shares = [beta(alpha, each) for each in numbers]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_draws_are_a_function_of_the_keys_and_not_of_torchs_generator():
    options = MixingOptions(mixup=0.8, cutmix=1.0)
    first = [draw_mixing(options, 8, 8, 3, step) for step in range(20)]
    state = torch.get_rng_state()
    torch.manual_seed(9)
    assert [draw_mixing(options, 8, 8, 3, step) for step in range(20)] == first
    assert [draw_mixing(options, 8, 8, 4, step) for step in range(20)] != first
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("options", "blended", "cut"),
    [
        ({"mixup": 0.8, "cutmix": 1.0}, 0.5, 0.5),
        ({"mixup": 0.8, "cutmix": 1.0, "switch_probability": 0.2}, 0.8, 0.2),
        ({"mixup": 0.8, "cutmix": 1.0, "mixing_probability": 0.4}, 0.2, 0.2),
        ({"mixup": 0.8}, 1, 0),
        ({"cutmix": 1.0}, 0, 1),
        ({}, 0, 0),
    ],
)
def test_how_often_a_batch_is_mixed_and_how(options, blended, cut):
    drawn = [draw_mixing(MixingOptions(**options), 32, 32, 0, step) for step in range(500)]
    cuts = [each for each in drawn if each.box is not None]
    mixed = [each for each in drawn if each.box is None and each.share < 1]
    assert len(cuts) / 500 == pytest.approx(cut, abs=0.07)
    assert len(mixed) / 500 == pytest.approx(blended, abs=0.07)
    for each in cuts:
        top, bottom, left, right = each.box
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 32
        assert each.share == 1 - (bottom - top) * (right - left) / 1024


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixing_probability": 0.5}, "mixing_probability is for mixup and cutmix, and both are off"),
        ({"mixup": 0.8, "switch_probability": 0.1}, "switch_probability chooses between mixup and cutmix: set both"),
        ({"mixup": -1.0}, "greater than or equal to 0"),
        ({"label_smoothing": 1.0}, "less than 1"),
    ],
)
def test_options_without_a_use_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        MixingOptions(**options)
