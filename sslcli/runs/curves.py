"""Curves of a log, drawn with the dots of Braille characters; no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

#: Dots of a character: two columns of four rows. The bit of each, by column and by row from the top.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EMPTY = 0x2800


def curve(points: Sequence[tuple[float, float]], width: int, height: int) -> tuple[list[str], float, float]:
    """Draws points as one line.

    Args:
        points: x ascending, and y; those that are not finite are left out.
        width: characters in a row.
        height: rows.

    Returns:
        the rows from the top, and the least and the largest value, which are at the bottom and at the top. Where there
        are more points than columns of dots, each shows the mean of its points. Without a point: empty rows, 0 and 0.
    """
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return [chr(_EMPTY) * width] * height, 0.0, 0.0
    columns, rows = 2 * width, 4 * height
    first, span = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        column = min(int((x - first) / span * columns), columns - 1)
        total, count = sums.get(column, (0.0, 0))
        sums[column] = total + y, count + 1
    means = {column: total / count for column, (total, count) in sums.items()}
    low, high = min(means.values()), max(means.values())
    dots = {
        column: rows // 2 if high == low else round((high - y) / (high - low) * (rows - 1))
        for column, y in means.items()
    }
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
