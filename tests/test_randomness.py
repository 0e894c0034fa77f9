"""The hash against a literal one in unsigned arithmetic, uniform numbers, and permutations of any length."""

from __future__ import annotations

import pytest
import torch

from sslcli import randomness
from sslcli.randomness import feistel, hash_bits, permutation, seed_for, uniform

MASK = (1 << 64) - 1


def reference_hash(*keys: int) -> int:
    state = 0
    for key in keys:
        x = ((state ^ (key & MASK)) + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        state = x ^ (x >> 31)
    return state


@pytest.mark.parametrize("keys", [(0,), (1, 2, 3), (-5, 7), (2**63 + 11, 0), (2**64 - 1, 2**40)])
def test_hash_is_splitmix64_in_unsigned_arithmetic(keys: tuple[int, ...]) -> None:
    assert int(hash_bits(*keys)) & MASK == reference_hash(*keys)


def test_hash_of_tensors_is_the_hash_of_each_combination() -> None:
    rows, columns = torch.tensor([[3], [-4]]), torch.tensor([0, 5, 9])
    table = hash_bits(1, rows, columns)
    for i, row in enumerate(rows.flatten().tolist()):
        for j, column in enumerate(columns.tolist()):
            assert int(table[i, j]) & MASK == reference_hash(1, row, column)


def test_every_bit_of_a_key_flips_half_of_the_hash() -> None:
    keys = torch.arange(512)
    for bit in (0, 1, 17, 40, 62):
        changed = hash_bits(7, keys) ^ hash_bits(7, keys ^ (1 << bit))
        flips = torch.stack([(changed >> other) & 1 for other in range(64)]).double()
        assert abs(float(flips.mean()) - 0.5) < 0.01
        # 512 coin tosses: six standard deviations are 0.13
        assert float((flips.mean(dim=1) - 0.5).abs().max()) < 0.14


def test_order_of_the_keys_matters() -> None:
    assert int(hash_bits(1, 2)) != int(hash_bits(2, 1))


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = uniform(0, 0, torch.arange(20_000), count=6)
    assert numbers.dtype == torch.float64
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    bins = torch.histc(numbers.flatten(), bins=50, min=0, max=1)
    expected = numbers.numel() / 50
    assert float(((bins - expected).square() / expected).sum()) < 100  # chi-square, 49 degrees of freedom
    correlation = torch.corrcoef(numbers.T) - torch.eye(6)
    assert float(correlation.abs().max()) < 0.04
    neighbors = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))[0, 1]
    assert abs(float(neighbors)) < 0.04


def test_uniform_numbers_of_a_key_do_not_depend_on_the_others() -> None:
    whole = uniform(3, torch.arange(100), 5, count=4)
    assert torch.equal(whole[40:43], uniform(3, torch.tensor([40, 41, 42]), 5, count=4))
    assert torch.equal(whole[:, :2], uniform(3, torch.arange(100), 5, count=2))


def test_the_global_generator_is_not_used() -> None:
    before = torch.get_rng_state()
    uniform(0, count=3)
    permutation(0, 0, 10)
    seed_for(1, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_are_non_negative_and_differ() -> None:
    seeds = {seed_for(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    torch.Generator().manual_seed(max(seeds))


@pytest.fixture(params=[10_000, 0], ids=["sorted", "feistel"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permutations by sorting, and item by item."""
    monkeypatch.setattr(randomness, "SORT_LIMIT", request.param)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("length", [1, 2, 3, 17, 1000, 4097])
def test_permutation_contains_each_item_once(length: int) -> None:
    assert torch.equal(permutation(5, 1, length).sort().values, torch.arange(length))


@pytest.mark.usefixtures("both_ways")
def test_chunks_of_a_permutation_join_to_the_whole() -> None:
    whole = permutation(5, 1, 1000)
    chunks = [permutation(5, 1, 1000, start, min(start + 300, 1000)) for start in range(0, 1000, 300)]
    assert torch.equal(torch.cat(chunks), whole)


@pytest.mark.usefixtures("both_ways")
def test_permutation_changes_with_seed_and_epoch() -> None:
    orders = [permutation(seed, epoch, 1000) for seed in range(3) for epoch in range(3)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert int((first == second).sum()) < 12  # one on average


def test_feistel_puts_every_item_at_every_position() -> None:
    # length 5 in a domain of 16: most first steps are out of range and continue
    orders = torch.stack([feistel(hash_bits(0, key), 5, torch.arange(5)) for key in range(100)])
    for position in range(5):
        counts = torch.bincount(orders[:, position], minlength=5).double()
        assert float(((counts - 20).square() / 20).sum()) < 25  # chi-square, 4 degrees of freedom


def test_feistel_does_not_change_its_input() -> None:
    positions = torch.arange(7)
    feistel(hash_bits(0), 7, positions)
    assert torch.equal(positions, torch.arange(7))
