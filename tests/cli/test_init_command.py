"""`ssl init`: what it finds, what it chooses, and that what it prints trains, for every method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import done, refused
from small_options import REQUIRED, needs_vit, quick
from tiny_data import write_folders

from sslcli.cli.init import usual_batch
from sslcli.config.resolve import load_config
from sslcli.plugins import find, load
from sslcli.training.setup import build


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(folder: str, count: int, width: int, height: int, mode: str = "RGB") -> None:
    Path(folder).mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(f"{folder}/{number}.png")


@pytest.mark.parametrize(
    "method", quick((p.name for p in find("methods") if p.package == "sslcli"), "simclr", "dino", "supcon")
)
def test_what_it_prints_is_a_run_of_every_method(method: str) -> None:
    write("my photos/cat", 5, 40, 36)
    write("my photos/dog", 7, 40, 36)
    narrow = "backbone.depth=1" if needs_vit(method) else "backbone.width=4"
    needed = load("methods", method).Options.model_fields.keys() & REQUIRED
    given = [f"method.{name}={REQUIRED[name]()}" for name in needed]
    out, err = done("init", method, "--data", "my photos", narrow, *given)
    assert err == "found: 12 images of 40 × 36 px, 2 classes\n"
    Path("my.yaml").write_text(out)
    config = load_config(Path("my.yaml"), [])
    assert (config.method.name, config.data.name, config.views[0].size) == (method, "folder", 32)
    assert build(config, compiled=False).info.steps_per_epoch == 1


@pytest.mark.usefixtures("no_estimate")
def test_it_says_what_it_found_and_why_it_chooses_what() -> None:
    write("photos", 3, 30, 20)
    write("photos/more", 40, 300, 200)
    out, err = done("init", "simclr", "--data", "photos")
    found = "43 images, typically 300 × 200 px (shorter side 20 to 200), no labels"
    assert err == f"found: {found}\n"
    assert out.startswith(f"# Written by `ssl init simclr --data photos`.\n# Found: {found}.\n")
    assert "\ndata:\n  name: images\n  root: photos\n" in out
    lines = out.splitlines()
    for line in ("  name: resnet18", "  size: 224", "  epochs: 800", "  batch_size: 32", "  workers: auto"):
        assert lines[lines.index(line) - 1].startswith("  # ")
    Path("my.yaml").write_text(out)
    plan = done("train", "my.yaml", "backbone.width=4", "views.size=64", "--dry-run")[0]
    assert "# images: 43\n" in plan


def test_labels_and_test_images_by_layout_and_gray_images() -> None:
    write_folders(Path("sorted"))
    out = done("init", "supcon", "--data", "sorted")[0]
    assert "val/ or test/ is for evaluations" in out
    assert "Found: 8 images, typically 24 × " in out
    write("gray", 4, 100, 100, "L")
    assert "  channels: 1\n" in done("init", "byol", "--data", "gray")[0]


def test_options_are_put_into_the_config() -> None:
    write("a: b #1", 6, 90, 90)
    words = ["backbone=vit_tiny", "training.epochs=3", "data.name=images", "optimizer.lr=0.1"]
    out = done("init", "simclr", "--data", "a: b #1", *words)[0]
    Path("my.yaml").write_text(out)
    config = load_config(Path("my.yaml"), [])
    assert config.backbone.name == "vit_tiny"
    assert config.training.epochs == 3
    assert config.data.options.root == Path("a: b #1")
    assert "\n  epochs: 3\n" in out
    assert "\n  # Less if the memory" in out  # what was not asked for keeps its reason


def test_a_registered_dataset_with_and_without_its_data() -> None:
    out, err = done("init", "dino", "--data", "shapes", "data.size=16", "data.count=300")
    assert err == "found: 300 images of 16 × 16 px, 10 classes\n"
    assert "  size: 16\n" in out
    out, err = done("init", "simclr", "--data", "cifar10", "data.root=~/data")
    assert err.startswith("warning: data.root: no CIFAR-10 in ")
    Path("my.yaml").write_text(out)
    config = load_config(Path("my.yaml"), [])
    assert (config.data.options.root, config.views[0].size, config.training.epochs) == (Path("~/data"), 32, 200)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simclr", "--data", "gone"], "command line: data.name: unknown dataset 'gone'; give the folder that"),
        (["simclr", "--data", "./gone"], "command line: data.name: no such folder: gone"),
        (["simclr", "--data", "empty"], "data.root: no images ("),
        (["simclr", "--data", "images"], "data.root: data does not exist"),
        (["supcon", "--data", "photos"], "'supcon' needs labels, and there are none in photos: "),
        (["simclrr", "--data", "photos"], "unknown method 'simclrr'; did you mean simclr?"),
        (["simclr"], "--data: missing; give a folder of images, or a dataset"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    Path("empty").mkdir()
    write("photos", 2, 40, 40)
    assert refused("init", *words).startswith(f"ssl: {message}")


def test_the_batch_leaves_steps_in_an_epoch() -> None:
    assert [usual_batch(count) for count in (1, 2, 5, 40, 300, 1000, 5000, 10**6)] == [2, 2, 4, 32, 32, 64, 256, 256]
