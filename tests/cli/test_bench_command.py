"""`ssl bench`: its output, and that it leaves no other files behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cli_helpers import folder, left_behind  # noqa: F401  # a fixture
from run_helpers import done, refused, ssl

from sslcli.training.loop import Loop

# ruff: noqa: F811


def test_it_prints_every_figure_and_writes_only_the_output_file(folder: Path) -> None:
    out, err = done("bench", "c.yaml", "--steps", "1", "--rounds", "2", "--output", "speed.json")
    rows = (
        "data", "transfer", "views", "forward", "backward", "optimizer and method update", "waiting", "rest", "step",
        "end to end", "on prepared views", "ratio", "peak, ", "dataset", "parameters", "optimizer state",
    )  # fmt: skip
    lines = [line.strip() for line in out.splitlines()]
    assert [row for row in rows if not any(line.startswith(row) for line in lines)] == []
    assert lines[0].startswith("simclr, resnet18, shapes; batch of 16,")
    assert "round 2 of 2: " in err
    assert "wrote speed.json" in err
    assert left_behind(folder) == {"speed.json"}
    written = json.loads((folder / "speed.json").read_text())
    assert written["config"]["training"]["batch_size"] == 16
    assert written["command"][0] == "ssl"


def signal_in(monkeypatch: pytest.MonkeyPatch, last: int, number: int) -> None:
    """Sends this process a signal during its n-th step."""
    steps, step = [0], Loop.step

    def counted(loop: Loop) -> None:
        steps[0] += 1
        if steps[0] == last:
            os.kill(os.getpid(), number)
        assert steps[0] <= last
        step(loop)

    monkeypatch.setattr(Loop, "step", counted)


def test_a_signal_keeps_the_rounds_that_are_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_in(monkeypatch, 9 + 3 + 2, signal.SIGINT)  # in the second round
    code, out, err = ssl("bench", "c.yaml", "--steps", "1", "--output", "speed.json")
    assert code == 130
    assert "end to end" in out
    assert "ended by SIGINT after 1 of 5 rounds" in err
    written = json.loads((folder / "speed.json").read_text())
    assert (written["rounds"], written["ended_by"]) == (1, "SIGINT")
    assert [len(each) for each in written["seconds_per_step"].values()] == [1, 1, 1]


def test_a_signal_before_that_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_in(monkeypatch, 4, signal.SIGTERM)
    code, out, err = ssl("bench", "c.yaml", "--output", "speed.json")
    assert (code, out) == (143, "")
    assert "no round is complete, so there are no results" in err
    assert left_behind(folder) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["c.yaml", "training.batch_size=many"], "training.batch_size: should be a valid integer"),
        (["c.yaml", "training.batch_size=64"], "training.batch_size: 64 is more than the 48 images"),
        (["c.yaml", "--output", "c.yaml"], "c.yaml: already exists; choose another --output"),
        (["c.yaml", "--output", "no/speed.json"], "no/speed.json: the directory no does not exist"),
        (["c.yaml", "--plugin", "gone.py"], "gone.py"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    before = (folder / "c.yaml").read_bytes()
    assert message in refused("bench", *arguments)
    assert left_behind(folder) == set()
    assert (folder / "c.yaml").read_bytes() == before


def test_a_loss_that_is_not_finite_is_reported_with_the_figures(folder: Path, odd_plugins: Path) -> None:
    out, err = done("bench", "c.yaml", "method={name: nan_method, bad_step: 2}", "--steps", "1", "--rounds", "1")
    assert "end to end" in out
    assert "the loss was not finite in step 2: `ssl train` would have stopped there" in err
