"""The picture of a confusion matrix: readable, row by row in percent, and made without any global state."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sslcli.evaluation import confusion

pytest.importorskip("matplotlib")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are saved, to look into."""
    from matplotlib.figure import Figure

    saved = []
    save = Figure.savefig

    def keep(self, *arguments, **settings):
        saved.append(self)
        save(self, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def drawn(tmp_path: Path, figures: list, matrix, names):
    path = tmp_path / "knn.png"
    confusion.write_confusion(path, matrix, names, "run: knn")
    assert path.read_bytes().startswith(b"\x89PNG")
    return figures[0].axes[0]


def test_rows_are_the_true_classes_and_add_up_to_a_hundred_per_cent(tmp_path, figures):
    axes = drawn(tmp_path, figures, [[3, 1, 0], [0, 0, 0], [1, 399, 600]], ["cat", "dog", "hen"])
    shown = axes.images[0].get_array().tolist()
    assert shown == [[75.0, 25.0, 0.0], [0.0, 0.0, 0.0], [pytest.approx(0.1), pytest.approx(39.9), 60.0]]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "·", "·", "·", "·", "<1", "40", "60"]
    assert axes.get_ylabel() == "true class"
    assert axes.get_xlabel() == "predicted class"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "hen"]


def test_beyond_twenty_classes_cells_have_no_numbers_and_long_names_are_cut(tmp_path, figures):
    names = ["tench, Tinca tinca, a fish of the carp family", *map(str, range(20))]
    axes = drawn(tmp_path, figures, [[int(row == column) for column in range(21)] for row in range(21)], names)
    assert not axes.texts
    assert [label.get_text() for label in axes.get_yticklabels()] == ["tench, Tinca tinca, a f…", *names[1:]]


def test_pyplot_is_not_touched_and_a_folder_that_is_missing_leaves_nothing(tmp_path, figures):
    sys.modules.pop("matplotlib.pyplot", None)
    drawn(tmp_path, figures, [[1, 0], [0, 1]], ["a", "b"])
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(OSError, match="missing"):
        confusion.write_confusion(tmp_path / "missing" / "a.png", [[1, 0], [0, 1]], ["a", "b"], "")
