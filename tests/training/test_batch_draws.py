"""`Batch.uniform` and `shared_uniform` depend on neither micro-batches nor processes; a resumed run draws them again.

Two processes are in test_distributed.py.
"""

from __future__ import annotations

import pytest
import torch
from draws_helpers import assert_same_draws, drawn

from sslcli.contracts.method import Batch, DrawKeys, View


def batch(count: int = 4, **keys: int) -> Batch:
    positions = torch.arange(count) + keys.pop("start", 0)
    return Batch(
        [View(torch.zeros(count, 3, 2, 2))], None, torch.arange(count), {}, DrawKeys(**keys, positions=positions)
    )


def test_micro_batches_draw_what_the_whole_batch_does() -> None:
    whole = drawn()
    assert_same_draws(drawn("training.accumulate=2"), whole)
    assert len(torch.unique(whole["shared"], dim=0)) == 6
    assert len(torch.unique(whole["own"])) == whole["own"].numel()


def test_a_step_later_on_draws_what_it_did() -> None:
    whole, tail = drawn(), drawn(first=2, steps=4)
    assert all(torch.equal(tail[name], whole[name][-len(tail[name]) :]) for name in tail)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"start": 4}])
def test_images_have_others_by_seed_epoch_and_place(change: dict[str, int]) -> None:
    assert not torch.isin(batch(**change).uniform(5), batch().uniform(5)).any()
    assert torch.equal(batch(step=7).uniform(5), batch().uniform(5))


def test_steps_have_others_by_seed_and_step() -> None:
    own = batch().shared_uniform(5)
    assert not torch.isin(batch(step=1).shared_uniform(5), own).any()
    assert not torch.isin(batch(seed=1).shared_uniform(5), own).any()
    assert not torch.isin(batch().uniform(5), own).any()
    assert torch.equal(batch(epoch=1, start=4).shared_uniform(5), own)


def test_they_are_uniform_below_one_and_independent_by_stream() -> None:
    some = batch(2000)
    numbers = torch.cat([some.uniform(50), some.uniform(50, stream=1)], 1)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=4 / (12 * numbers.numel()) ** 0.5)
    assert numbers.var().item() == pytest.approx(1 / 12, rel=0.01)
    between = torch.corrcoef(numbers.T)
    between.fill_diagonal_(0)
    assert between.abs().max() < 6 / 2000**0.5


def test_the_largest_number_does_not_round_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = torch.full((4, 1), 1 - 2.0**-53, dtype=torch.float64)
    monkeypatch.setattr("sslcli.contracts.batch.uniform", lambda *keys, count: largest)
    assert batch().uniform(1).max() == 1 - 2**-24
