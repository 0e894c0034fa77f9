"""Random numbers as functions without state: a counter-based hash of what they are for.

The order of the images is f(seed, epoch); a sample's draws are f(seed, epoch, position, view, operation). So nothing
depends on workers, batch size, accumulation, rank or device, and a resumed run needs no generator state.

The mixing function is SplitMix64's finalizer (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*,
OOPSLA 2014, with Stafford's variant 13), applied once per key, on int64 tensors, whose sums and products wrap like
unsigned ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Above this many items a permutation is computed item by item instead of by sorting.
SORT_LIMIT = 10_000_000

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


#: What is added for each key, and the factors of the mixing function.
_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's own copies the sign bit)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _mix_number(x: int) -> int:
    """`_mix` of one unsigned number, in a tenth of the time that a tensor of it takes."""
    x = (x ^ (x >> 30)) * _FIRST & _MASK
    x = (x ^ (x >> 27)) * _SECOND & _MASK
    return x ^ (x >> 31)


def hash_bits(*keys: int | Tensor, after: Tensor | None = None) -> Tensor:
    """Returns 64 hashed bits, as int64, for each combination of keys.

    Args:
        keys: integers or int64 tensors that broadcast together, in a fixed order.
        after: the hash of keys that come before these.
    """
    rest = list(keys)
    if after is None:
        number = 0
        while rest and isinstance(rest[0], int) and not torch.compiler.is_compiling():
            number = _mix_number((number ^ int(rest.pop(0))) + _GOLDEN & _MASK)
        after = torch.tensor(_signed(number), dtype=torch.int64)
    for key in rest:
        value = key if isinstance(key, Tensor) else _signed(key)
        after = _mix((after ^ value) + _GOLDEN)
    return after


def uniform(*keys: int | Tensor, count: int, after: Tensor | None = None) -> Tensor:
    """Returns float64 numbers in [0, 1) with 53 random bits, `count` of them along a new last dimension.

    Args:
        keys: as for `hash_bits`; with a tensor of shape (N,) among them the result is (N, count).
        count: how many numbers for each combination of keys.
        after: as for `hash_bits`.
    """
    base = hash_bits(*keys, after=after).unsqueeze(-1)
    bits = hash_bits(torch.arange(count, dtype=torch.int64), after=_mix(base + _GOLDEN))
    return _shift(bits, 11).double() * 2.0**-53


def seed_for(*keys: int) -> int:
    """Returns a non-negative 63-bit seed for torch's own generators (weights, dropout)."""
    return int(_shift(hash_bits(*keys), 1))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's own generators on the CPU and on a device.

    `torch.manual_seed` also notes the seed for devices that were not started, with a stack trace for each kind, which
    takes milliseconds: on the CPU that is a part of a small step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def permutation(seed: int, epoch: int, length: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Returns positions `start` to `stop` of the order of `length` items in an epoch, as int64.

    Up to `SORT_LIMIT` items the order is that of their hashes; above, a keyed Feistel permutation, which is computed
    only for the given positions, so that no array of the whole length is allocated.
    """
    stop = length if stop is None else stop
    if length <= SORT_LIMIT:
        order = torch.argsort(hash_bits(seed, epoch, torch.arange(length, dtype=torch.int64)), stable=True)
        return order[start:stop]
    return feistel(hash_bits(seed, epoch), length, torch.arange(start, stop, dtype=torch.int64))


def feistel(key: Tensor, length: int, positions: Tensor, rounds: int = 6) -> Tensor:
    """Permutes 0..length-1 with a balanced Feistel network and cycle walking; returns the items at `positions`."""
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    result = positions.clone()
    outside = torch.ones_like(positions, dtype=torch.bool)
    while bool(outside.any()):  # repeat for results outside 0..length-1; at most 4 times on average
        left, right = result[outside] >> half, result[outside] & mask
        for index in range(rounds):
            left, right = right, left ^ (hash_bits(key, index, right) & mask)
        result[outside] = (left << half) | right
        outside = result >= length
    return result
