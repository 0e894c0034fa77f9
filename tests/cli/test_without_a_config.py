"""`ssl train` and `ssl bench` without a config, and with options that they don't have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import done, refused, ssl
from tiny_data import write_folders

#: What makes a run small.
SMALL = ["views.size=16", "backbone.stem=small", "backbone.width=4", "training.max_steps=1", "training.device=cpu"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "my photos #1")


def test_a_method_and_a_folder_are_a_run_named_after_the_method() -> None:
    out, err = done("train", "method=simclr", "data=my photos #1", "training.workers=0", *SMALL)
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("simclr-")
    assert "training.batch_size: 16 instead of 256: there are only 16 images\n" in err
    assert out.startswith(f"ssl eval {run} --method quality\n")  # images have no labels to evaluate with
    # The folder has grown: the run keeps its batch.
    for number in range(50):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"my photos #1/{number}.png")
    again = [word for word in SMALL if "max_steps" not in word]
    code, _, err = ssl(
        "train", "method=simclr", "data=my photos #1", "training.workers=0", *again, "training.max_steps=2",
        "--output", run, "--resume",
    )  # fmt: skip
    assert "batch_size" not in err
    assert code == 0, err


def test_a_config_may_stand_among_the_overrides() -> None:
    words = ["data.count=64", "quickstart", "training.batch_size=16", *SMALL]
    assert "# images: 64\n" in done("train", *words, "--dry-run")[0]
    assert "images/s" in done("bench", *words, "--steps", "1", "--rounds", "1")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0.1"], "command line: lr: unknown; did you mean optimizer.lr=0.1 or "),
        (["--batch-size", "64"], "command line: batch_size: unknown; did you mean training.batch_size=64?"),
        (["--epochs=3"], "command line: epochs: unknown; did you mean training.epochs=3?"),
        (["--device", "cpu"], "command line: device: unknown; did you mean training.device=cpu?"),
        (["--method", "dino"], "--method: no such option; write method=dino"),
        (["--data", "~/a b"], "--data: no such option; write data='~/a b'"),
        (["--optimizer.lr=3"], "--optimizer.lr: no such option; write optimizer.lr=3"),
        (["-x"], "-x: no such option; see --help"),
    ],
)
def test_an_option_that_is_none_is_answered_by_the_one_meant(words: list[str], message: str) -> None:
    for command in ("train", "bench"):
        assert refused(command, "quickstart", *words).startswith(f"ssl: {message}")
        assert refused(command, *words, "quickstart").startswith(f"ssl: {message}")


def test_a_mistyped_option_of_the_command_itself_is_told() -> None:
    assert refused("train", "quickstart", "--resum") == "ssl: --resum: no such option; did you mean --resume?"
    assert refused("bench", "quickstart", "--step", "3") == "ssl: --step: no such option; did you mean --steps?"
    two = refused("train", "quickstart", "--lr", "1", "--epochs", "3", lines=2).splitlines()
    assert [line.partition(": unknown")[0] for line in two] == ["ssl: command line: lr", "ssl: command line: epochs"]


def test_nothing_and_too_much_is_one_line() -> None:
    assert refused("train").startswith(
        "ssl: nothing to train: give a config (`ssl list configs`), or a method and data:"
    )
    assert "'other': should look like key.path=value" in refused("train", "quickstart", "other")
    assert refused("train", "my photos #1").startswith("ssl: my photos #1: is a directory, not a config; to train on")
    assert "schedule.warmup_epochs=1.4, or train longer (training.epochs=200)" in refused(
        "train", "quickstart", "schedule.warmup_epochs=20"
    )
