"""The evaluator `quality`: its numbers are those of the formulas, on the features and on two views of each image."""

from __future__ import annotations

import pytest
import torch
from evaluation_helpers import InMemory, trained

from sslcli.contracts.errors import UserError
from sslcli.data.subset import fixed_choice
from sslcli.evaluation.quality import alignment, effective_rank, feature_std, rank_me, roy_vetterli_rank, uniformity
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.probes.images import read_views
from sslcli.evaluators.quality import SIMCLR, Quality, QualityOptions, two_views

#: 8 × 8 images: a mild recipe keeps something of them.
VIEWS = {"preset": "moco_v2", "blur": 0}


def subject(count=40, labels=None, seed=0, **data):
    parts = [InMemory(labels, count, split=split, **data) for split in ("train", "test")]
    return FrozenSubject(trained(), parts[0], parts[1], torch.device("cpu"), seed=seed)


def evaluate(it, **options):
    return Quality(QualityOptions.parse({"views": VIEWS, **options})).evaluate(it)


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("limit", [10, None])
def test_the_numbers_are_those_of_the_functions_on_the_features(part, limit):
    it = subject()
    result = evaluate(it, part=part, limit=limit)
    z = it.features(part).features[fixed_choice(40, limit)]
    assert result.protocol["images"] == result.protocol["pairs"] == len(z)
    functions = {
        "rank_me": rank_me,
        "effective_rank": effective_rank,
        "roy_vetterli_rank": roy_vetterli_rank,
        "uniformity": uniformity,
        "feature_std": feature_std,
    }
    assert {name: result.metrics[name] for name in functions} == {name: float(f(z)) for name, f in functions.items()}


def test_another_seed_changes_the_views_alone():
    first, other = evaluate(subject()), evaluate(subject(seed=1))
    assert first.metrics["alignment"] != other.metrics["alignment"]
    assert {**first.metrics, "alignment": 0} == {**other.metrics, "alignment": 0}


def test_views_without_randomness_are_aligned_and_normalized_as_the_features_are():
    it = subject()
    still = {"preset": "probe_eval"}
    assert evaluate(it, views=still).metrics["alignment"] == pytest.approx(0, abs=1e-10)
    # One view as it is, one mirrored: the literal forward, with the card's normalization.
    listed = {"preset": "moco_v2", "crop_scale": [1, 1], "crop_ratio": [1, 1], "jitter": 0, "grayscale": 0, "blur": 0}
    found = evaluate(it, views={**listed, "0": {"flip": 0}, "1": {"flip": 1.0}}).metrics["alignment"]
    images = it.dataset("eval").pixels
    with torch.no_grad():
        z1, z2 = (it.backbone(it.normalize(x)).pooled for x in (images, images.flip(-1)))
    assert found == pytest.approx(float(alignment(z1, z2)), rel=1e-3)


def test_images_that_are_decoded_one_by_one_give_the_same_as_resident_ones():
    resident, streamed = evaluate(subject()).metrics, evaluate(subject(resident=False)).metrics
    assert streamed == pytest.approx(resident, rel=2e-2)  # crops are rounded to 8 bits on their way


def test_unreadable_images_are_left_out_of_both_views():
    it = subject(count=300, resident=False)
    it.dataset("eval").damaged = {3, 290}
    result = evaluate(it)
    assert result.protocol["images"] == result.protocol["pairs"] == 298


def test_of_a_recipe_with_small_crops_two_large_views_are_taken():
    views = two_views(read_views({"preset": "swav"}, SIMCLR, 64))
    assert [(view.count, view.size) for view in views] == [(1, 64), (1, 64)]
    asymmetric = two_views(read_views({"preset": "byol"}, SIMCLR, 32))
    assert asymmetric[0].operations != asymmetric[1].operations


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"preset": "simclrr"}, "did you mean simclr"),
        ({"crop_scal": [0, 1]}, "crop_scal"),
        ({"preset": "probe_eval", "1": {"flip": 1.0}}, "1 views, numbered from 0"),
    ],
)
def test_views_that_do_not_exist_are_refused_when_the_options_are_read(views, message):
    with pytest.raises(ValueError, match=message):
        QualityOptions.parse({"views": views})


@pytest.mark.parametrize(
    ("count", "views", "message"),
    [(40, {"preset": "simclr", "size": 16}, "evaluated on images of 8 px"), (1, VIEWS, "at least two images")],
)
def test_views_of_another_size_and_single_images_are_refused(count, views, message):
    with pytest.raises(UserError, match=message):
        evaluate(subject(count), views=views)
