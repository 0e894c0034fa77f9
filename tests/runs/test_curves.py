"""Curves of Braille dots."""

from __future__ import annotations

import math

from sslcli.runs.curves import curve


def dots(rows: list[str]) -> set[tuple[int, int]]:
    """Column and row of every dot."""
    places = {
        0x01: (0, 0),
        0x02: (0, 1),
        0x04: (0, 2),
        0x40: (0, 3),
        0x08: (1, 0),
        0x10: (1, 1),
        0x20: (1, 2),
        0x80: (1, 3),
    }
    return {
        (2 * column + x, 4 * row + y)
        for row, text in enumerate(rows)
        for column, letter in enumerate(text)
        for bit, (x, y) in places.items()
        if (ord(letter) - 0x2800) & bit
    }


def test_a_line_goes_from_corner_to_corner() -> None:
    rows, low, high = curve([(n, 7 - n) for n in range(8)], 4, 2)
    assert (low, high) == (0, 7)
    assert dots(rows) == {(n, n) for n in range(8)}


def test_few_points_are_joined_and_many_are_averaged() -> None:
    rows, *_ = curve([(0, 0), (100, 1)], 4, 2)
    assert {column for column, _ in dots(rows)} == set(range(8))
    rows, low, high = curve([(n, n % 2) for n in range(1600)], 4, 2)
    assert (low, high) == (0.5, 0.5)
    assert {row for _, row in dots(rows)} == {4}


def test_what_is_not_finite_is_left_out() -> None:
    rows, low, high = curve([(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)], 3, 1)
    assert (low, high) == (1, 2)
    assert len(rows) == 1
    assert curve([(0, math.nan)], 3, 1) == (["⠀⠀⠀"], 0, 0)
    assert dots(curve([(5, 3.0)], 3, 1)[0]) == {(0, 2)}


def test_neither_order_nor_size_of_the_values_matters() -> None:
    assert curve([(10, 1), (-500, 2), (20, 0)], 4, 2) == curve([(-500, 2), (10, 1), (20, 0)], 4, 2)
    rows, low, high = curve([(0, -1.7e308), (1, 1.7e308)], 4, 2)
    assert (low, high) == (-1.7e308, 1.7e308)
    assert {(0, 7), (7, 0)} <= dots(rows)
