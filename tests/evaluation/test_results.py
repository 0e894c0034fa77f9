"""Tables, several seeds, and the files of results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from sslcli.contracts.evaluation import EvaluationResult
from sslcli.evaluation import results
from sslcli.evaluation.results import about_spread, over_seeds, write_output, write_result
from sslcli.evaluation.tables import Row, as_json, lines, plain_table, rich_table


def result(top1: float, seed: int = 0, **metrics: float) -> EvaluationResult:
    return EvaluationResult({"top1": top1, **metrics}, {"seed": seed, "decided": {"lr": top1}}, {"curve": [seed]})


def test_seeds_give_mean_and_sample_standard_deviation_and_each_stays_in_the_details():
    joined = over_seeds([result(0.5, 3), result(0.6, 4), result(0.8, 5)], [3, 4, 5])
    assert joined.metrics["top1"] == pytest.approx(statistics.fmean([0.5, 0.6, 0.8]))
    assert joined.spread["top1"] == pytest.approx(statistics.stdev([0.5, 0.6, 0.8]))
    assert joined.protocol["seeds"] == [3, 4, 5]
    assert [row["seed"] for row in joined.details["seeds"]] == [3, 4, 5]
    assert [row["metrics"]["top1"] for row in joined.details["seeds"]] == [0.5, 0.6, 0.8]
    assert joined.details["seeds"][1]["decided"] == {"lr": 0.6}
    assert joined.details["curve"] == [3]
    single = over_seeds([result(0.5)], [0])
    assert (single.spread, single.protocol["seeds"]) == ({}, [0])


def test_what_the_spread_over_seeds_leaves_out_is_said_with_the_sampling_error() -> None:
    joined = over_seeds([result(0.5, 3), result(0.7, 4)], [3, 4])
    assert about_spread("linear", joined) is None  # no number of test images
    joined.protocol["eval_images"] = 2400
    assert (
        "over 2 seeds of the evaluation alone; the accuracy on 2,400 test images has a standard error of 1.00 points"
        in (about_spread("linear", joined) or "")
    )  # √(.6 · .4 / 2400) = 0.01
    assert about_spread("knn", over_seeds([result(0.5)], [0])) is None


def test_a_table_has_a_row_each_and_a_dash_for_what_was_not_measured():
    rows = [
        Row("runs/a", "knn", result(0.5)),
        Row("runs/long", "quality", EvaluationResult({"rankme": 12.3456}, {})),
        Row("runs/a", "linear", EvaluationResult({"top1": 0.625}, {}, {}, {"top1": 0.0123})),
    ]
    assert plain_table(rows) == [
        "target     method            top1  rankme",
        "runs/a     knn             50.00%       –",
        "runs/long  quality              –   12.35",
        "runs/a     linear   62.50% ± 1.23       –",
    ]
    assert plain_table([Row("[a]", "knn", result(0.5)), Row("b", "knn", result(0.25))]) == [
        "target    top1",  # no column for the method, since all are alike
        "[a]     50.00%",
        "b       25.00%",
    ]
    assert lines(EvaluationResult({"top1": 0.5, "rankme": 3.0}, {})) == ["top1    50.00%", "rankme  3"]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(rich_table([Row("runs/[bold]x", "knn", result(0.5))]))
    assert "runs/[bold]x" in shown.get()  # brackets in a path are not markup


def test_json_of_several_has_a_result_each_without_the_long_details():
    found = as_json([Row("a", "knn", result(0.5)), Row("b", "knn", result(0.5), Path("b/eval/knn.json"))])
    assert [list(row) for row in found["results"]] == [["target", "method", "metrics", "protocol", "file"]] * 2
    assert [row["file"] for row in found["results"]] == [None, "b/eval/knn.json"]


def test_a_result_is_kept_with_its_picture_and_earlier_ones_under_a_number(tmp_path, monkeypatch, messages):
    pictures = []
    monkeypatch.setattr(results, "can_draw", lambda: True)
    monkeypatch.setattr(
        results, "write_confusion", lambda path, *rest: (pictures.append(rest), path.write_text(rest[2]))
    )
    for top1 in (0.25, 0.5):
        row = Row(str(tmp_path), "knn", result(top1))
        row.result.details["confusion"] = [[1, 2], [3, 4]]
        write_result(tmp_path, row, ("cat", "dog"))
    folder = tmp_path / "eval"
    assert {path.name for path in folder.iterdir()} == {"knn.json", "knn.png", "knn.1.json", "knn.1.png"}
    assert json.loads((folder / "knn.json").read_text())["metrics"] == {"top1": 0.5}
    assert (folder / "knn.1.png").read_text().endswith("knn, top-1 25.0%")
    assert pictures[1][:2] == ([[1, 2], [3, 4]], ("cat", "dog"))
    assert messages[-2:] == [f"wrote {folder / 'knn.json'}", f"wrote {folder / 'knn.png'}"]
    monkeypatch.setattr(results, "can_draw", lambda: False)
    write_result(tmp_path, row, ("cat", "dog"))
    assert not (folder / "knn.png").exists()


def test_an_output_file_holds_one_result_or_a_list(tmp_path):
    row = Row("a", "knn", result(0.5))
    write_output(tmp_path / "one.json", [row])
    write_output(tmp_path / "two.json", [row, row])
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert (one["target"], one["method"], one["metrics"]) == ("a", "knn", {"top1": 0.5})
    assert two == {"results": [one, one]}
