"""Names are data: control characters, line breaks, quotes, markup and bytes that are no UTF-8 pass every command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY
from PIL import Image
from run_helpers import done, refused, ssl

#: Of files and folders: what a terminal obeys, forged lines, markup, formats, options, escapes that look like another
#: name, marks that turn the writing direction, bytes that are no UTF-8.
CLASSES = ["-rf", "a\nssl: forged", "a\\nssl: forged", "$HOME `x` $(x)", "\udcff\udcfe", "\x1b[31m[bold]100%s\u202e'\""]
RUN = "run \x1b[2J\n[red]\udcff-"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run, all with odd names."""
    folder = tmp_path_factory.mktemp("odd")
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (folder / "data" / split / name).mkdir(parents=True)
            for file in ("-x.png", "b\n\x1b]0;t\x07.png", "\udcfe.png", "plain.png"):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(os.fsencode(folder / "data" / split / name / file), "PNG")
    (folder / "data" / "train" / CLASSES[0] / "broken\n\x1b[31m.png").write_text("no image")
    data = {"name": "folder", "root": str(folder / "data"), "max_unreadable": 0.5, "normalization": "measured"}
    config = {**TINY, "data": data, "views": {"preset": "simclr", "size": 16}, "schedule": "constant"}
    config["training"] = {**TINY["training"], "epochs": 2, "workers": 0}
    config["callbacks"] = {"knn": None, "online_probe": None}
    (folder / "-c\n.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    if not Path(RUN).exists():
        out, err = done("train", f"{work}/-c\n.yaml", "--output", RUN)
        harmless(out + err)
        Path("printed").write_text(out)
        assert "unreadable image replaced: " in err
        assert "broken\\n\\x1b[31m.png" in err
        assert err.count("\nssl:") == 0
    return work


def harmless(text: str) -> None:
    assert all(each.isprintable() for each in text.replace("\n", "")), ascii(text)
    assert not any(line.startswith("ssl: forged") for line in text.splitlines())


def test_a_run_keeps_the_names_and_its_commands_can_be_pasted(here: Path) -> None:
    stored = yaml.safe_load((here / RUN / "config.yaml").read_text())
    assert stored["data"]["root"] == str(here / "data")
    for line in Path("printed").read_text().splitlines()[:2]:
        words = subprocess.run(
            ["sh", "-c", f"set -- {line}; printf '%s\\0' \"$@\""], capture_output=True, check=True, cwd=here
        ).stdout.split(b"\0")[1:-1]
        assert os.fsencode(RUN) in [word.rstrip(b"/") for word in words]
    out, err = done("runs", ".")
    harmless(out + err)
    assert "run \\x1b[2J\\n[red]\\udcff-" in out
    (found,) = json.loads(done("runs", ".", "--json")[0])
    assert found["path"] == RUN
    out, err = done("train", RUN, "--resume", "training.epochs=3")
    harmless(out + err)
    message = refused("train", RUN)
    harmless(message)
    words = shlex.split(message.partition("`")[2].rpartition("`")[0], posix=False)
    assert words[:2] == ["ssl", "train"]


@pytest.mark.usefixtures("pictures")
def test_evaluations_and_their_picture_take_any_class(here: Path) -> None:
    out, err = done("eval", RUN, RUN, "--method", "linear", "epochs=1")
    harmless(out + err)
    assert out.count("\n") == 3
    done("eval", RUN, "--method", "linear", "epochs=1", "--output", "r\n.json")
    result = json.loads(Path("r\n.json").read_text())
    assert result["target"] == RUN
    assert Path("r\n.png").is_file()


@pytest.mark.parametrize("suffix", ["safetensors", "npy"])
def test_features_have_the_true_names(here: Path, suffix: str) -> None:
    file = here / f"f\n\x1b[31m'.{suffix}"
    out, err = done("export", "features", RUN, "data.split=val", "--output", file)
    harmless(out + err)
    found: dict[str, Any] = {}
    exec(out, found)
    assert len(found["names"]) == len(CLASSES) * 4
    assert {Path(name).parts[-2] for name in found["names"]} == set(CLASSES)
    assert all((here / "data" / "val" / name).is_file() for name in found["names"])


def test_an_init_of_an_odd_folder_is_a_config_and_its_command_one_line(here: Path) -> None:
    out, err = done("init", "simclr", "--data", f"{here}/data")
    os.rename("data", "d\n\x1b[31m# x")
    try:
        out, err = done("init", "simclr", "--data", "d\n\x1b[31m# x")
    finally:
        os.rename("d\n\x1b[31m# x", "data")
    harmless(out + err)
    assert yaml.safe_load(out)["data"]["root"] == "d\n\x1b[31m# x"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "gone\n\x1b[31m.yaml"], ["train", "method=\x1b[31m[bold]x"], ["eval", "gone\n\x1b[2J[bold]"],
        ["export", "\x1b[31m[red]", "x"], ["list", "\x1b[31m\n"], ["runs", "gone\x1b[31m\udcff"],
        ["train", "data=\x1b[2J\n/gone", "method=simclr"], ["\x1b[31m[bold]"], ["eval", "--\x1b[31m"],
        ["eval", "--seed", "\x1b[31m[bold]"],
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_harmlessly(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ssl(*words)
    assert (code, out) == (2, "")
    harmless(err)
