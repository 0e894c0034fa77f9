"""What a lent GPU found is kept: files with their origin, the tables of the documentation, the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_helpers import ROOT, Import, benchmark  # noqa: F401  # a fixture
from run_helpers import contents

# ruff: noqa: F811

RESULTS = ROOT / "benchmarks/results"
ABOUT = {
    "stage": "run", "name": "about", "device": "NVIDIA H100 80GB HBM3", "date": "2027-01-02T03:04+00:00",
    "commit": "0123456789abcdef", "versions": {"python": "3.12.3", "torch": "2.11.0+cu130", "cuda": "13.0"},
}  # fmt: skip


def bench(rate: float, views: float, ratio: float) -> dict[str, Any]:
    return {
        "command": ["ssl", "bench", "/root/clone/examples/simclr.yaml"],
        "config": {"data": {"root": "/tmp/work/cifar10"}},
        "images_per_second": {"end_to_end": {"median": rate}, "ready": {"median": rate * ratio}},
        "ratio": {"median": ratio},
        "phases": {"views": {"ms": 1.0, "share": views}},
    }


#: As a call writes them, cut off while it wrote the last line.
RECORDED = [
    {"stage": "env", "name": "machine", "bf16_tflops": 790.0, "copy_tb_s": 3.0, "host_us_per_launch": 5.0},
    {"stage": "env", "name": "machine", "status": 0, "seconds": 9.0},
    {"stage": "tests", "name": "tests/a.py::one", "test": "passed", "seconds": 1.0},
    {"stage": "tests", "name": "tests/a.py::two", "test": "failed", "why": "File /root/clone/tests/a.py, line 3"},
    {"stage": "tests", "name": "pytest", "status": 1, "seconds": 60.0, "end": "…"},
    {"stage": "bench", "name": "eager 512", "bench": bench(15_000.0, 0.2, 0.9)},
    {"stage": "bench", "name": "eager 512 again", "bench": bench(99_000.0, 0.2, 0.9)},
    {"stage": "bench", "name": "all 1024", "bench": bench(21_000.0, 0.04, 0.985)},
    {"stage": "bench", "name": "224 px, views", "bench": bench(2_000.0, 0.09, 0.97)},
    {"stage": "profile", "name": "none", "launches": 590.0, "ms": 30.0, "host_ms": 14.0},
    {"stage": "learn", "name": "train", "status": "no time left"},
    {"stage": "G1", "name": "piece", "from": 0, "to": 4000, "seconds": 100.0, "arrived": False},
    {"stage": "G1", "name": "train", "status": 143, "seconds": 100.0},
]  # fmt: skip
LATER = [
    {"stage": "G1", "name": "piece", "from": 4000, "to": 9700, "seconds": 150.0, "arrived": True},
    {"stage": "G1", "name": "knn", "top1": 0.831, "published": "83.2 ± .2"},
    {"stage": "G1", "name": "linear", "top1": 0.855, "published": "85.6 ± .2"},
]


def write(folder: Path, about: dict[str, Any], records: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    lines = [json.dumps(record) for record in [about, *records]]
    (folder / "results.jsonl").write_text("\n".join([*lines, '{"stage": "costs", "na']))
    return folder


@pytest.fixture
def place(benchmark: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose results are kept, with the page and ledger of this one and nothing measured."""
    keep, page = benchmark("gpu.keep"), benchmark("page")
    results = tmp_path / "results"
    results.mkdir()
    (results / "GPU.md").write_text((RESULTS / "GPU.md").read_text())
    (tmp_path / "performance.md").write_text(page.PAGE.read_text())
    monkeypatch.setattr(keep, "RESULTS", results)
    monkeypatch.setattr(keep, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(keep, "WAITING", tmp_path / "waiting")
    return tmp_path


def test_results_are_kept_with_their_origin(benchmark: Import, place: Path) -> None:
    keep, folder = benchmark("gpu.keep").keep, write(place / "first", ABOUT, RECORDED)
    (folder / "G1.000").write_bytes(b"a piece")
    (place / "waiting").mkdir()
    for name in ("G1.001", "G2.001"):
        (place / "waiting" / name).write_bytes(b"of an older packing")
    said = "\n".join(keep(folder))
    assert (place / "waiting/G1.000").read_bytes() == b"a piece"
    assert {path.name for path in (place / "waiting").iterdir()} == {"G1.000", "G2.001"}
    names = {path.name for path in (place / "results").glob("*.json")}
    assert names == {f"gpu-{stage}.json" for stage in ("env", "tests", "bench", "profile", "G1")}
    for name in names:
        text = (place / "results" / name).read_text()
        kept = json.loads(text)
        assert kept["device"] == ABOUT["device"]
        assert (kept["date"], kept["commit"], kept["versions"]) == (ABOUT["date"], ABOUT["commit"], ABOUT["versions"])
        assert "/root" not in text
        assert "command" not in text
    rows = benchmark("gpu.ledger").read_rows((place / "results/GPU.md").read_text())
    added = {row[3]: row for row in rows if row[0] == "2027-01-02 03:04"}
    assert added.keys() == {"env", "tests", "bench", "learn", "profile", "G1"}
    assert added["bench"][1:] == [
        "NVIDIA H100 80GB HBM3",
        "0123456",
        "bench",
        "4 variants, fastest all 1024: 21,000 images/s",
    ]
    assert added["tests"][4] == "1 passed, 1 failed: tests/a.py::two; failed: pytest (1)"
    assert added["learn"][4] == "failed: train (no time left)"
    assert added["G1"][4] == "steps 0 to 4,000 in 100 s"
    assert "Next rung: G1 from step 4,000" in said
    assert "--state FOLDER" in said


def test_predicted_aimed_at_and_measured_stand_side_by_side(benchmark: Import, place: Path) -> None:
    keep = benchmark("gpu.keep").keep
    list(keep(write(place / "first", ABOUT, RECORDED)))
    list(keep(write(place / "second", {**ABOUT, "date": "2027-01-03T03:04+00:00"}, LATER)))
    lines = (place / "performance.md").read_text().splitlines()
    rows = {cells[0]: cells[1:] for line in lines if (cells := [cell.strip() for cell in line.strip("|").split("|")])}
    assert rows["eager, batch 512"] == ["10,000 to 18,000 images/s", "", "15,000 images/s"]
    assert rows["the fastest setting (all 1024)"][2] == "21,000 images/s"
    assert rows["its ratio to the same steps on prepared views"] == ["", "at least .98", "0.985"]
    assert rows["its views' share of a step"] == ["", "at most 5%", "4.0%"]
    assert rows["views' share at 224 px, ResNet-50"] == ["", "at most 10%", "9.0%"]
    assert rows["the host's time for an eager step, batch 512"] == ["16 ms", "", "14.0 ms"]
    assert rows["launches of an eager step"] == ["851", "at most 600", "590"]
    # Both pieces of the rung.
    assert rows["100 epochs of CIFAR-10 (G1), start included"] == ["208 to 357 s", "less than 300 s", "250 s"]
    climbed = [line for line in lines if line.startswith("| G1 | knn")]
    assert climbed == ["| G1 | knn | 83.2 ± .2 (dkobak) | 83.1 | 208 to 357 s | 250 s |"]
    kept = json.loads((place / "results/gpu-G1.json").read_text())
    dates = [record["date"] for record in kept["records"] if record["name"] == "piece"]
    assert dates == [ABOUT["date"], "2027-01-03T03:04+00:00"]
    ledger = (place / "results/GPU.md").read_text()
    assert "| G1 | `benchmarks/ladder/g1.yaml` | 1 | 2 | 79 MB | arrived |" in ledger
    assert "Next rung: G0-simclr" in ledger


def test_keeping_twice_adds_nothing(benchmark: Import, place: Path) -> None:
    keep, folder = benchmark("gpu.keep").keep, write(place / "first", ABOUT, RECORDED[:-2])
    list(keep(folder))
    before = contents(place)
    list(keep(folder))
    assert contents(place) == before


@pytest.mark.parametrize("about", [{**ABOUT, "device": "x86_64"}, {"stage": "run", "name": "about", "status": 1}])
def test_a_dry_run_is_not_kept(benchmark: Import, place: Path, about: dict[str, Any]) -> None:
    folder = write(place / "first", about, RECORDED)
    before = contents(place)
    with pytest.raises(ValueError, match="not kept"):
        list(benchmark("gpu.keep").keep(folder))
    assert contents(place) == before


def test_a_dry_run_can_be_looked_at_elsewhere(benchmark: Import, place: Path) -> None:
    folder = write(place / "first", {**ABOUT, "device": "x86_64"}, RECORDED)
    before = contents(place / "results")
    list(benchmark("gpu.keep").keep(folder, place / "there"))
    assert contents(place / "results") == before
    assert "21,000 images/s" in (place / "there/performance.md").read_text()
    assert "x86_64" in (place / "there/GPU.md").read_text()


def test_page_and_ledger_show_the_stored_results(benchmark: Import) -> None:
    page, ledger = benchmark("page"), benchmark("gpu.ledger")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.with_part(text, "gpu", benchmark("gpu.tables").page(RESULTS)) == text
    text = (RESULTS / "GPU.md").read_text(encoding="utf-8")
    assert page.with_part(text, "ladder", ledger.ladder(RESULTS)) == text
    assert page.with_part(text, "next", ledger.coming(RESULTS)) == text
    dated = [(row[0], row[3]) for row in ledger.read_rows(text)]
    for path in RESULTS.glob("gpu-*.json"):
        kept = json.loads(path.read_text(encoding="utf-8"))
        assert (kept["date"][:16].replace("T", " "), kept["stage"]) in dated


def test_a_longer_rung_needs_more_calls(benchmark: Import) -> None:
    ledger = benchmark("gpu.ledger")
    # Two halves of the images; a second piece also brings 8 files, 6 of them in a call of their own, and the first
    # takes back 6 and 2.
    assert ledger.calls("G1") == (1, 2)
    assert ledger.calls("G2") == (2, 6)
