"""`ssl preview`: what it writes, replaces and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from run_helpers import done, refused
from tiny_data import write_folders

SHAPES = ["method=simclr", "data={name: shapes, count: 32, size: 16}", "backbone={name: resnet18, width: 4}"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_picture_is_written_and_an_earlier_one_replaced() -> None:
    _, err = done("preview", *SHAPES, "--images", 2, "-o", "it.png")
    assert err.splitlines()[-1] == "wrote it.png: 2 images"
    small = Image.open("it.png").size
    done("preview", *SHAPES, "--images", 3, "-o", "it.png")
    assert Image.open("it.png").height > small[1]
    _, err = done("preview", *SHAPES, "training.batch_size=2")
    assert err.splitlines()[-1] == "wrote views.png: 2 images, all of a micro-batch"
    assert Image.open("views.png").format == "PNG"


def test_nothing_else_is_replaced_unless_forced() -> None:
    Path("config.yaml").write_text("mine")
    Image.new("RGB", (2, 2)).save("photo.png")
    for name in ("config.yaml", "photo.png"):
        before = Path(name).read_bytes()
        assert f"{name}: `ssl preview` did not write it" in refused("preview", *SHAPES, "-o", name)
        assert Path(name).read_bytes() == before
    done("preview", *SHAPES, "--images", 1, "-o", "photo.png", "--force")
    assert Image.open("photo.png").width > 2


def test_what_cannot_be_drawn_is_one_line_and_writes_nothing() -> None:
    assert "no/such" in refused("preview", *SHAPES, "-o", "no/such/views.png")
    few = ["training={batch_size: 8, epochs: 1}", "schedule.warmup_epochs=0", "--quiet"]
    assert "--step: 99: the run has 4 steps" in refused("preview", *SHAPES, *few, "--step", 99)
    assert "views.png: already exists" in refused("preview", *SHAPES, "-o", _folder("views.png"))
    assert list(Path().rglob("*.png")) == [Path("views.png")]


def _folder(name: str) -> str:
    Path(name).mkdir()
    return name


def test_photographs_with_hostile_names_a_plugin_and_a_run_are_taken() -> None:
    write_folders(Path("photos"))
    Path("photos/train/cat/0.png").rename("photos/train/cat/\x1b[31m\n\N{BELL}é.png")
    Path("plain.py").write_text(PRESET)
    words = [
        "method=simclr",
        "data=photos",
        "views.preset=plain",
        "views.size=16",
        "--plugin",
        "plain.py",
        "backbone={name: resnet18, width: 4}",
    ]
    done("preview", *words, "--images", 8)
    done("train", *words, "training={epochs: 1, batch_size: 4, workers: 0, preview: 1}", "--output", "run")
    done("preview", "run", "--plugin", "plain.py", "-o", "again.png", "--images", 1)
    assert Image.open("again.png").tobytes() == Image.open("run/views.png").tobytes()
    assert "`ssl preview` did not write it" in refused("preview", *words, "-o", "run/views.png")


PRESET = '''
from sslcli.contracts.views import Preset

class Plain(Preset):
    """Crops alone."""
    fixed = [{"count": 2, "crop_scale": [0.5, 1.0]}]
'''
