"""Parts of a dataset: the fixed choice of `limit`, and where it is applied."""

from __future__ import annotations

import pytest
import torch
from source_helpers import Numbered

from sslcli.contracts.data import DatasetOptions
from sslcli.data.subset import Subset, limited, stratified_choice, stratified_share, stratified_split

UNEVEN = torch.cat([torch.full((700,), 0), torch.full((200,), 2), torch.full((100,), 1)])


@pytest.mark.parametrize("limit", [1, 2, 3, 99, 100, 333, 998, 999])
def test_a_limit_is_met_exactly_and_no_class_is_off_by_an_image(limit: int) -> None:
    chosen = stratified_choice(UNEVEN, limit)
    assert len(set(chosen.tolist())) == len(chosen) == limit
    exact = torch.bincount(UNEVEN).double() * limit / len(UNEVEN)
    assert float((torch.bincount(UNEVEN[chosen], minlength=3) - exact).abs().max()) < 1


@pytest.mark.parametrize("limit", [None, 1000, 5000])
def test_without_a_limit_all_images_stay_in_order(limit: int | None) -> None:
    assert torch.equal(stratified_choice(UNEVEN, limit), torch.arange(1000))


def test_a_choice_is_ascending_and_always_the_same() -> None:
    chosen = stratified_choice(UNEVEN, 12)
    torch.manual_seed(1)
    assert torch.equal(chosen, stratified_choice(UNEVEN, 12))
    assert chosen.tolist() == [77, 96, 114, 122, 235, 359, 558, 668, 690, 714, 742, 973]


def test_a_choice_within_a_class_is_spread_over_it_and_part_of_a_larger_one() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    chosen = stratified_choice(labels, 500)
    assert 200 < int((chosen < 500).sum()) < 300
    assert set(stratified_choice(labels, 10).tolist()) < set(chosen.tolist())


def test_the_largest_remainder_is_rounded_up() -> None:
    labels = torch.tensor([0] * 7 + [1] * 3)  # 2.8 and 1.2 of 4
    assert labels[stratified_choice(labels, 4)].bincount().tolist() == [3, 1]


@pytest.mark.parametrize("labeled", [True, False])
def test_a_limit_is_applied_for_a_data_set_that_does_not(labeled: bool) -> None:
    whole = Numbered(60, labeled=labeled)
    assert limited(whole) is whole
    whole.options = DatasetOptions(limit=12)
    part = limited(whole)
    assert isinstance(part, Subset)
    labels = torch.zeros(60, dtype=torch.int64) if whole.labels is None else whole.labels
    chosen = stratified_choice(labels, 12)
    images = part.images()
    assert images is not None
    assert images[:, 0, 0, 0].tolist() == chosen.tolist() == [int(part.image(n)[0, 0, 0]) for n in range(12)]
    assert part.name_of(3) == f"numbered[{chosen[3]}]"
    assert (part.labels is not None) is labeled
    assert part.labels is None or torch.equal(part.labels, labels[chosen])
    assert limited(part) is part


def test_a_share_and_a_split_are_the_same_of_each_class_and_follow_the_seed() -> None:
    labels = torch.cat([torch.zeros(200), torch.ones(40), torch.full((3,), 2.0), torch.full((1,), 3.0)]).long()
    small, large = stratified_share(labels, 0.05, 0), stratified_share(labels, 0.5, 0)
    assert torch.bincount(labels[small]).tolist() == [10, 2, 1, 1]
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.equal(stratified_share(labels, 1.0, 0), torch.arange(244))
    kept, held_out = stratified_split(labels, 0.05, 0)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(244))
    assert torch.bincount(labels[held_out], minlength=4).tolist() == [10, 2, 1, 0]
    for first, second in ((small, stratified_share(labels, 0.05, 1)), (held_out, stratified_split(labels, 0.05, 1)[1])):
        assert not torch.equal(first, second)
        assert not torch.equal(first[:10], torch.arange(10))
