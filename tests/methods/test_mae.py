"""MAE: what encoder and decoder see, how many patches are hidden, and the size of the decoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from masked_helpers import altered, given_to, images, learned, masked, masked_batch
from pydantic import ValidationError
from run_helpers import refused

from sslcli.config.resolve import load_config
from sslcli.methods import mae
from sslcli.methods.mae import MAEOptions
from sslcli.modules.masks import random_keep, take
from sslcli.modules.transformer import patches_of

SMALL = {"decoder": {"dim": 16, "depth": 1}}


predicted = partial(given_to, "masked_pixels_and_metrics")


def test_predictions_see_no_hidden_pixel_and_are_of_all_of_them() -> None:
    method, view = masked("mae", **SMALL), images()
    _, mask = random_keep(masked_batch(method, view).uniform(16), 4)
    prediction, pixels = predicted(method, view)
    again, other = predicted(method, altered(view, mask))
    assert torch.equal(prediction, again)
    assert not torch.equal(pixels, other)
    hidden = torch.stack([row.nonzero()[:, 0] for row in mask])
    assert torch.equal(pixels, take(patches_of(view, 4), hidden))
    assert not torch.equal(predicted(method, altered(view, ~mask))[0], prediction)


def test_what_it_says_that_is_seen_is_all_that_the_features_depend_on() -> None:
    method, view = masked("mae", **SMALL), images()
    batch = masked_batch(method, view)
    ((index, visible),) = method.visible_patches(batch).values()
    assert index == 0
    assert visible.sum(dim=1).tolist() == [4] * len(view)
    features = method(batch).features
    assert torch.equal(method(masked_batch(method, altered(view, ~visible))).features, features)
    assert not torch.equal(method(masked_batch(method, altered(view, visible))).features, features)


def test_predictions_depend_on_the_place_and_features_are_those_of_visible_patches() -> None:
    method, view = masked("mae", **SMALL), images()
    prediction, _ = predicted(method, view)
    assert prediction.std(dim=1).min() > 1e-4
    batch = masked_batch(method, view)
    keep, _ = random_keep(batch.uniform(16), 4)
    assert torch.equal(method(batch).features, method.backbone(view, keep=keep).pooled)


@pytest.mark.slow
def test_it_learns_to_paint_ramps() -> None:
    explained = [each["explained"] for each in learned(masked("mae", **SMALL), 60, 2e-3)]
    assert explained[0] < 0.1
    assert explained[-1] > 0.8


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.6, 6), (0.999, 1), (0.001, 15)])
def test_so_many_patches_are_seen(ratio: float, kept: int) -> None:
    method = masked("mae", mask_ratio=ratio, **SMALL)
    assert predicted(method, images())[0].shape == (8, 16 - kept, 48)


def test_micro_batches_hide_what_the_whole_batch_does_and_another_epoch_something_else() -> None:
    method, view = masked("mae", **SMALL), images()
    batch = masked_batch(method, view)
    halves = []
    for part in (slice(0, 4), slice(4, 8)):
        half = masked_batch(method, view[part])
        half.index = batch.index[part]
        halves.append(method(half).loss)
    torch.testing.assert_close(torch.stack(halves).mean(), method(batch).loss)
    first = random_keep(batch.uniform(16), 4)[0]
    batch.keys = type(batch.keys)(seed=3, epoch=1)
    assert not torch.equal(random_keep(batch.uniform(16), 4)[0], first)


def test_views_of_another_phase_may_be_smaller() -> None:
    method = masked("mae", **SMALL)
    assert method(masked_batch(method, images(12))).loss.isfinite()


@pytest.mark.parametrize(("features", "dim"), [(48, 32), (192, 128), (384, 256), (768, 512), (1024, 512)])
def test_the_decoder_is_as_wide_as_the_papers_behind_its_encoders_and_narrower_behind_others(
    features: int, dim: int
) -> None:
    assert mae.decoder_dim(MAEOptions(), features) == dim
    assert mae.decoder_dim(MAEOptions.parse({"decoder": {"dim": 64}}), features) == 64


def test_a_network_that_cannot_hide_patches_is_refused_and_without_one_it_is_a_vit(tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = refused("train", "quickstart", "method=mae", "--output", out)
    assert "'mae' needs a vision transformer, which 'resnet18' is not; set backbone=vit_small" in line
    assert not out.exists()
    config = load_config(None, ["method=mae", "data={name: shapes, count: 40, size: 32}", "backbone.depth=3"])
    assert (config.backbone.name, config.backbone.options.depth) == ("vit_small", 3)
    options = config.backbone.options
    assert (options.init, options.positions, options.pool) == ("xavier", "sincos", "mean")


def test_nothing_or_all_hidden_is_refused() -> None:
    for ratio in (0.0, 1.0):
        with pytest.raises(ValidationError, match="mask_ratio"):
            MAEOptions(mask_ratio=ratio)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["method=mae", "backbone.patch_size=16", "method.decoder.heads=5"],
            "128 dimensions, the width for this network, ",
        ),
        (["method=mae", "backbone.patch_size=16", "views.size=16"], "backbone.patch_size: 'mae' needs 2 x 2 patches"),
        (
            ["method=ijepa", "backbone.patch_size=16"],
            "backbone.patch_size: 'ijepa' needs 3 x 3 patches of a view or more, ",
        ),
        (["method=ijepa", "backbone.patch_size=4", "method.predictor.heads=7"], "are not divisible by 7 heads"),
    ],
)
def test_what_a_network_is_too_small_for_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    shapes = ["backbone.name=vit_tiny", "backbone.depth=1", "data={name: shapes, count: 8, size: 32}", "--quiet"]
    assert said in refused("train", *words, *shapes, "training.device=cpu", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()
