"""Curves of a log, drawn with the dots of Braille characters; no torch."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

#: Dots of a character: two columns of four rows. The bit of each, by column and by row from the top.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EMPTY = 0x2800


def curve(points: Sequence[tuple[float, float]], width: int, height: int) -> tuple[list[str], float, float]:
    """Draws points as one line.

    Args:
        points: x and y; those that are not finite are left out.
        width: characters in a row.
        height: rows.

    Returns:
        the rows from the top, and the least and the largest value, which are at the bottom and at the top. Where there
        are more points than columns of dots, each shows the mean of its points. Without a point: empty rows, 0 and 0.
    """
    points = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if not points:
        return [chr(_EMPTY) * width] * height, 0.0, 0.0
    columns, rows = 2 * width, 4 * height
    first, span = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    values: dict[int, list[float]] = {}
    for x, y in points:
        values.setdefault(min(int((x - first) / span * columns), columns - 1), []).append(y)
    means = {column: statistics.fmean(each) for column, each in values.items()}
    low, high = min(means.values()), max(means.values())
    height_of = {column: 0.5 if high == low else y / 2 - low / 2 for column, y in means.items()}  # halves: no overflow
    whole = 1.0 if high == low else high / 2 - low / 2
    dots = {column: round((1 - above / whole) * (rows - 1)) for column, above in height_of.items()}
    cells = [[0] * width for _ in range(height)]

    def mark(column: int, row: int) -> None:
        cells[row // 4][column // 2] |= _BITS[column % 2][row % 4]

    ends = list(dots.items())
    for column, row in ends:
        mark(column, row)
    for (start, above), (stop, below) in itertools.pairwise(ends):
        steps = max(stop - start, abs(below - above))
        for step in range(1, steps):
            mark(start + round(step * (stop - start) / steps), above + round(step * (below - above) / steps))
    return ["".join(chr(_EMPTY + bits) for bits in row) for row in cells], low, high
