"""The evaluator `quality` needs no labels, repeats to the bit, and looks at what it says it looks at."""

from __future__ import annotations

import pytest
import torch
from evaluation_helpers import InMemory, trained

from sslcli.contracts.errors import UserError
from sslcli.data.subset import fixed_choice
from sslcli.evaluation.quality import alignment, effective_rank, feature_std, rank_me, uniformity
from sslcli.evaluation.seal import SealedSubject
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.quality import Quality, QualityOptions, two_views

#: 8 × 8 images: a mild recipe keeps something of them.
VIEWS = {"preset": "moco_v2", "blur": 0}


def subject(count=40, labels=None, seed=0, **data):
    parts = [InMemory(labels, count, split=split, **data) for split in ("train", "test")]
    return FrozenSubject(trained(), parts[0], parts[1], torch.device("cpu"), seed=seed)


def evaluate(it, **options):
    return Quality(QualityOptions.parse({"views": VIEWS, **options})).evaluate(it)


def test_it_works_without_labels_also_through_the_seal():
    it = subject()
    result = evaluate(SealedSubject(it, "quality", seed=0, chooses=Quality.chooses, needs_labels=Quality.needs_labels))
    assert set(result.metrics) == {"rank_me", "effective_rank", "alignment", "uniformity", "feature_std"}
    assert result.protocol["images"] == result.protocol["pairs"] == 40


def test_the_numbers_are_those_of_the_functions_on_the_features():
    it = subject()
    metrics = evaluate(it).metrics
    z = it.features("eval").features
    assert metrics["rank_me"] == float(rank_me(z))
    assert metrics["effective_rank"] == float(effective_rank(z))
    assert metrics["uniformity"] == float(uniformity(z))
    assert metrics["feature_std"] == float(feature_std(z))


def test_it_repeats_to_the_bit_and_another_seed_changes_the_views_alone():
    first, again, other = evaluate(subject()), evaluate(subject()), evaluate(subject(seed=1))
    assert first.metrics == again.metrics
    assert first.metrics["alignment"] != other.metrics["alignment"]
    assert {**first.metrics, "alignment": 0} == {**other.metrics, "alignment": 0}


def test_views_without_chance_are_aligned_and_normalized_as_the_features_are():
    it = subject()
    still = {"preset": "probe_eval"}
    assert evaluate(it, views=still).metrics["alignment"] == pytest.approx(0, abs=1e-10)
    # One view as it is, one mirrored: the literal forward, with the card's normalization.
    mirrored = {"preset": "probe_eval", "1": {"flip": 1.0}}
    with pytest.raises(UserError, match="1 views, numbered from 0"):
        two_views(mirrored, 8)
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


def test_a_limit_is_a_fixed_choice_of_images():
    it = subject()
    result = evaluate(it, limit=10)
    assert result.protocol["images"] == result.protocol["pairs"] == 10
    assert result.metrics["rank_me"] == float(rank_me(it.features("eval").features[fixed_choice(40, 10)]))


def test_the_training_part_may_be_looked_at_instead():
    it = subject()
    assert evaluate(it, part="train").metrics["rank_me"] == float(rank_me(it.features("train").features))


def test_of_a_recipe_with_small_crops_two_large_views_are_taken():
    views = two_views({"preset": "swav"}, 64)
    assert [(view.count, view.size) for view in views] == [(1, 64), (1, 64)]
    asymmetric = two_views({"preset": "byol"}, 32)
    assert asymmetric[0].operations != asymmetric[1].operations


@pytest.mark.parametrize(
    ("views", "message"), [({"preset": "simclrr"}, "did you mean simclr"), ({"crop_scal": [0, 1]}, "crop_scal")]
)
def test_views_that_do_not_exist_are_refused_when_the_options_are_read(views, message):
    with pytest.raises(ValueError, match=message):
        QualityOptions.parse({"views": views})


def test_views_of_another_size_than_the_backbones_are_refused():
    with pytest.raises(UserError, match="judged on images of 8 px"):
        evaluate(subject(), views={"preset": "simclr", "size": 16})


def test_a_single_image_has_no_spread():
    with pytest.raises(UserError, match="two images at least"):
        evaluate(subject(count=1))
