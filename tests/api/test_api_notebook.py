"""What a notebook shows of a run and of a result: a table, and a plot of the log."""

from __future__ import annotations

import subprocess
import sys

import pytest
from api_helpers import Arrays, tiny_run

import sslcli
from sslcli.api.shown import plot_log, table_rows
from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import EvaluationResult

LINES = [
    {"step": 0, "knn_top1": 0.5, "knn_top1_pixels": 0.4},
    {"step": 1, "loss": 3.0, "lr": 0.1},
    {"step": 2, "loss": 2.5, "lr": 0.05, "knn_top1": 0.75},
]


def test_the_table_of_a_run_has_what_it_did_and_escapes_names(tmp_path) -> None:
    train, test = Arrays(40), Arrays(20, seed=1)
    folder = tmp_path / "<b>&runs"
    folder.mkdir()
    run = tiny_run(folder / "one", data=train, labeled=(train, test), callbacks={"progress": None})
    html = run._repr_html_()
    assert html.startswith("<table><caption>Run ")
    assert "&lt;b&gt;&amp;runs/one</caption>" in html
    assert "<b>" not in html
    for row in (
        "<th>method</th><td>simclr</td>",
        "<th>backbone</th><td>python:Net</td>",
        "<th>step</th><td>10 of 10</td>",
    ):
        assert row in html
    last = next(line["loss"] for line in reversed(run.metrics) if "loss" in line)
    assert f"<th>loss</th><td>{last:.4g}</td>" in html
    knn = [line["knn_top1"] for line in run.metrics if "knn_top1" in line and line["step"]]
    assert f"<td>{knn[-1]:.1%}, best {max(knn):.1%} at step " in html
    assert "kNN" not in tiny_run(tmp_path / "unlabeled", training={"max_steps": 1})._repr_html_()


def test_the_accuracy_before_training_is_none_of_the_run() -> None:
    config = {section: {"name": "x"} for section in ("method", "backbone", "data")}
    lines = [{"step": 0, "knn_top1": 0.9}, {"step": 2, "knn_top1": 0.75}, {"step": 4, "knn_top1": 0.5}]
    assert table_rows(config, "4", lines)["kNN top-1"] == "50.0%, best 75.0% at step 2"
    assert "kNN top-1" not in table_rows(config, "0", lines[:1])


def test_the_table_of_a_result_has_its_metrics() -> None:
    result = EvaluationResult({"top1": 0.5, "<rank>": 12.3456}, {}, spread={"top1": 0.01})
    html = result._repr_html_()
    assert "<th>top1</th><td>50.00% ± 1.00</td>" in html
    assert "<th>&lt;rank&gt;</th><td>12.35</td>" in html


def test_the_plot_has_a_panel_for_each_logged_value() -> None:
    figure = plot_log(LINES, "runs/one")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["loss", "learning rate", "kNN top-1 (%)"]
    (loss,), (accuracy, pixels) = figure.axes[0].lines, figure.axes[2].lines
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == ([1, 2], [3.0, 2.5])
    assert list(accuracy.get_ydata()) == [50.0, 75.0]
    assert list(pixels.get_ydata()) == [40.0, 40.0]
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in plot_log(LINES[1:2], "x").axes] == ["loss", "learning rate"]
    with pytest.raises(UserError, match=r"^x: nothing is logged yet$"):
        plot_log([], "x")


def test_a_run_is_plotted_without_pyplot_and_the_missing_package_is_named(tmp_path, monkeypatch) -> None:
    run = tiny_run(tmp_path / "run", training={"max_steps": 2})
    run.plot().savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    program = f"import sslcli, sys; sslcli.Run({str(run.path)!r}).plot(); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"^plot needs matplotlib: pip install 'sslcli\[plots\]', or use run\.metrics$"):
        sslcli.Run(run.path).plot()
