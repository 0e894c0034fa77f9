from __future__ import annotations

import pytest
import torch

from sslcli.data.subset import stratified_choice


def uneven_labels() -> torch.Tensor:
    return torch.cat([torch.full((700,), 0), torch.full((200,), 2), torch.full((100,), 1)])


def test_limit_keeps_the_share_of_each_class() -> None:
    labels = uneven_labels()
    chosen = stratified_choice(labels, 100)
    assert torch.bincount(labels[chosen]).tolist() == [70, 10, 20]


@pytest.mark.parametrize("limit", [1, 2, 3, 99, 333, 998, 999])
def test_limit_is_met_exactly_and_no_class_is_off_by_an_image(limit: int) -> None:
    labels = uneven_labels()
    chosen = stratified_choice(labels, limit)
    assert len(set(chosen.tolist())) == len(chosen) == limit
    exact = torch.bincount(labels).double() * limit / len(labels)
    assert float((torch.bincount(labels[chosen], minlength=3) - exact).abs().max()) < 1


@pytest.mark.parametrize("limit", [None, 1000, 5000])
def test_without_a_limit_all_images_stay_in_order(limit: int | None) -> None:
    assert torch.equal(stratified_choice(uneven_labels(), limit), torch.arange(1000))


def test_choice_is_ascending_and_always_the_same() -> None:
    chosen = stratified_choice(uneven_labels(), 50)
    assert torch.equal(chosen, chosen.sort().values)
    torch.manual_seed(1)
    assert torch.equal(chosen, stratified_choice(uneven_labels(), 50))


def test_choice_within_a_class_is_spread_over_it() -> None:
    chosen = stratified_choice(torch.zeros(1000, dtype=torch.int64), 500)
    assert 200 < int((chosen < 500).sum()) < 300


def test_smaller_choice_of_a_class_lies_within_a_larger_one() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    assert set(stratified_choice(labels, 10).tolist()) < set(stratified_choice(labels, 40).tolist())


def test_largest_remainder_is_rounded_up() -> None:
    labels = torch.tensor([0] * 7 + [1] * 3)  # 2.8 and 1.2 of 4
    assert labels[stratified_choice(labels, 4)].bincount().tolist() == [3, 1]
