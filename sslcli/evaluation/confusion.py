"""The plot of a confusion matrix: rows are the true classes, and each adds up to 100 percent."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

from sslcli.logs import shown
from sslcli.storage import atomic_path

#: Up to this many classes each cell shows its number, and each class its name.
NUMBERED, NAMED = 20, 110
_LONGEST = 24
_DPI = 150


def can_draw() -> bool:
    """Returns whether matplotlib (extra `plots`) is installed; imports nothing."""
    return importlib.util.find_spec("matplotlib") is not None


def write_confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """Plots a confusion matrix as a PNG file, written atomically.

    Args:
        path: the file; an existing one is replaced.
        matrix: (C, C) counts; the row is the true class, the column the predicted one.
        classes: the C names, in the order of the labels.
        title: above the picture.

    Raises:
        OSError: the file cannot be written.
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    count = len(matrix)
    percent = [[100 * value / max(1, sum(row)) for value in row] for row in matrix]
    # Room for two digits in each cell, up to the size of a page.
    side = min(max(3.0, 0.44 * count), 12.0)
    # Without pyplot: no window and no global state.
    figure = Figure(figsize=(side + 2.6, side + 1.9), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    axes.set_title(shown(title), fontsize=11, parse_math=False)  # a dollar sign is one
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    step = -(-count // NAMED)
    ticks = list(range(0, count, step))
    names = _short([shown(classes[tick]) for tick in ticks])
    size = 9 if count <= NUMBERED else 7 if count <= 40 else 5.5
    axes.set_xticks(ticks, names, rotation=90 if count > NUMBERED else 45, fontsize=size, parse_math=False)
    if count <= NUMBERED:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        for row, values in enumerate(percent):
            for column, value in enumerate(values):
                text = "·" if value == 0 else "<1" if value < 0.5 else f"{value:.0f}"
                color = "white" if value > 55 else "#999999" if value == 0 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("percent of the true class")
    bar.outline.set_visible(False)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font does not have
        figure.savefig(temporary, format="png")


def _short(names: Sequence[str]) -> list[str]:
    """Cuts names that are too long (ImageNet's are sentences); those that are then the same get their number."""
    short = [name if len(name) <= _LONGEST else name[: _LONGEST - 1].rstrip(", ") + "…" for name in names]
    return [f"{name} ({index})" if short.count(name) > 1 else name for index, name in enumerate(short)]
