"""A resumed run knows the data, the code and the plan that it had: what changed is said, or refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from PIL import Image
from run_helpers import contents, done, newest

from sslcli import plugins
from sslcli.contracts.data import DataInfo, StreamDataset
from sslcli.contracts.errors import UserError
from sslcli.data.identity import identify
from sslcli.datasets.images import Images
from sslcli.runs.checkpoint import read_checkpoint
from sslcli.runs.metrics import read_metrics
from sslcli.training.position import Position
from sslcli.training.provenance import changes
from sslcli.training.setup import build
from sslcli.training.train import train


def write(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (16, 16 + number), (number, 0, 0)).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def first_part():
    """Where the run of `started` is once it has been made."""
    return []


@pytest.fixture
def started(tiny, tmp_path, tmp_path_factory, first_part):
    """A run of 6 steps, 1.5 of 3 epochs, on 16 files in batches of 4; returns a function that makes its config."""
    root = write(tmp_path / "data", range(16))

    def config(*overrides):
        data = f"data={{name: images, root: {root}}}"
        options = ["training.batch_size=4", "training.workers=0", "training.log_every=1", "callbacks.collapse=null"]
        return tiny(data, "views={preset: simclr, size: 16}", *options, *overrides)

    if not first_part:
        first_part.append(train(config("training.max_steps=6"), tmp_path_factory.mktemp("run")).directory)
    shutil.copytree(first_part[0], tmp_path / "run")
    return config


def position(run: Path) -> dict[str, int]:
    return newest(run).document["position"]


def test_a_checkpoint_says_what_the_run_is_made_with(started, tmp_path):
    document = newest(tmp_path / "run").document
    assert document["position"] == {
        "step": 6, "made": 6, "seen": 24, "epochs": 3, "images": 16, "batch_size": 4, "steps_per_epoch": 4,
    }  # fmt: skip
    assert document["data"]["images"] == 16
    start = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"][-1]
    assert {name: start[name] for name in ("data", "plugins", "versions")} == {
        name: document[name] for name in ("data", "plugins", "versions")
    }


def test_nothing_is_said_of_a_run_in_which_nothing_changed(started, tmp_path, messages):
    train(started(), tmp_path / "run", resume=True)
    assert [line for line in messages if line.startswith("warning")] == []
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [*range(1, 13)]


def test_more_images_are_said_and_the_run_goes_on_at_the_same_epoch(started, tmp_path, messages):
    mean = newest(tmp_path / "run").document["card"]["mean"]
    write(tmp_path / "data", range(100, 109))
    result = train(started(), tmp_path / "run", resume=True)
    assert any("16 images in the run, 25 now" in line for line in messages)
    assert any("an epoch is 6 steps instead of 4" in line and "to step 15 instead of 12" in line for line in messages)
    assert (result.step, result.total_steps) == (15, 15)
    records = [(line["step"], line["epoch"]) for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert records[5:8] == [(6, 1.5), (7, 1.6667), (8, 1.8333)]
    assert records[-1] == (15, 3.0)
    after = position(tmp_path / "run")
    assert (after["step"], after["made"], after["seen"]) == (18, 15, 24 + 9 * 4)
    assert newest(tmp_path / "run").document["card"]["mean"] == mean


def test_renamed_files_are_said(started, tmp_path, messages):
    (tmp_path / "data" / "000.png").rename(tmp_path / "data" / "zzz.png")
    train(started("training.max_steps=7"), tmp_path / "run", resume=True)
    assert any("the data has changed: 16 images as in the run, but some are others" in line for line in messages)
    assert newest(tmp_path / "run").step == 7


def test_larger_batches_take_no_part_of_the_run_away(started, tmp_path, messages):
    result = train(started("training.batch_size=8"), tmp_path / "run", resume=True)
    assert any("an epoch is 2 steps instead of 4" in line and "to step 9 instead of 12" in line for line in messages)
    assert result.step == 9
    assert position(tmp_path / "run")["seen"] == 3 * 16
    lrs = {line["step"]: line["lr"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    # Step 7 is the fourth of a run of 6, whose warm-up is 2: its learning rate is that of epoch 1.5.
    assert lrs[7] == pytest.approx(0.05 * (1 + math.cos(math.pi * (3 - 2) / (6 - 2))) / 2)


def test_checkpoints_of_the_plan_before_still_count(started, tmp_path):
    before = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    train(
        started("training.batch_size=8", "checkpoints.keep=9", "checkpoints.every_steps=2"),
        tmp_path / "run",
        resume=True,
    )
    assert before < {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}


def test_a_run_is_not_made_shorter_than_it_is(started, tmp_path, messages):
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"training\.epochs: 1, and 1\.5 of the run's 3 epochs are done.*set it to 2"):
        train(started("training.epochs=1"), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    assert train(started("training.max_steps=5"), tmp_path / "run", resume=True).step == 6
    assert any("training.max_steps: 5, and 6 steps are made already: nothing is trained" in line for line in messages)


@pytest.mark.usefixtures("no_estimate")
def test_a_dry_run_says_the_same_and_writes_nothing(started, tmp_path):
    write(tmp_path / "data", range(100, 109))
    before = contents(tmp_path / "run")
    changed = ["training.max_steps=null", f"data.root={tmp_path / 'data'}"]
    out, err = done("train", tmp_path / "run", *changed, "--resume", "--dry-run")
    assert "16 images in the run, 25 now" in err
    assert "to step 15 instead of 12" in err
    assert "# steps: 15" in out
    assert contents(tmp_path / "run") == before


def test_a_run_of_a_version_without_positions_goes_on_as_ever(started, tmp_path, monkeypatch, messages):
    def older(path, prefix=""):
        checkpoint = read_checkpoint(path, prefix)
        for name in ("position", "data", "plugin_files"):
            checkpoint.document.pop(name)
        return checkpoint

    monkeypatch.setattr("sslcli.training.train.read_checkpoint", older)
    train(started(), tmp_path / "run", resume=True)
    assert [line for line in messages if line.startswith("warning")] == []
    assert newest(tmp_path / "run").step == 12


SOURCE = """
from sslcli.methods.simclr import SimCLR

class Mine(SimCLR):
    pass
"""


def test_a_changed_plugin_file_and_other_versions_are_said(tiny, tmp_path, messages):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    files = [plugins.register_file(path)]
    try:
        train(tiny("method=mine", "training.max_steps=2"), tmp_path / "run", plugin_files=files)
        plugins.clear_cache()
        path.write_text(SOURCE + "    label = 'mine'\n")
        changed = [plugins.register_file(path)]
        train(tiny("method=mine", "training.max_steps=3"), tmp_path / "run", resume=True, plugin_files=changed)
        hashes = f"sha256 {files[0].sha256[:8]} in the run, {changed[0].sha256[:8]} now"
        assert [line for line in messages if line.startswith("warning")] == [
            f"warning: the plugin file mine.py has changed ({hashes}): the run goes on with the changed code"
        ]
    finally:
        plugins.clear_cache()


def test_other_versions_and_classes_are_said():
    data = {"images": 4, "files": "a", "labels": "b", "classes": ["cat", "dog"]}
    method = {"name": "mine", "package": "my_methods", "version": "1.0"}
    before = {"data": data, "plugins": {"method": method}, "versions": {"torch": "2.6.0", "sslcli": "1.0"}}
    now = {
        "data": {**data, "classes": ["cat", "wolf"]}, "plugins": {"method": {**method, "version": "1.1"}},
        "plugin_files": {}, "versions": {"torch": "2.7.0", "sslcli": "1.0"},
    }  # fmt: skip
    assert changes(before, now) == [
        "the classes have changed: 2 in the run, 2 now ('dog', 'wolf'): labels mean others",
        "the plugin of method 'mine' has changed: my_methods 1.0 in the run, my_methods 1.1 now",
        "torch 2.6.0 in the run, 2.7.0 now: results will not be bitwise identical",
    ]
    assert changes({}, now) == []


def test_positions_move_by_epochs_and_round_down_to_whole_batches():
    before = Position(step=7, made=7, seen=28, epochs=4, images=17, batch_size=4, steps_per_epoch=4)
    now = Position(step=0, made=0, seen=0, epochs=4, images=17, batch_size=8, steps_per_epoch=2)
    moved = before.moved(now)
    assert (moved.step, moved.made, moved.seen, moved.last) == (3, 7, 28, 12)  # 12 of 17 images: one batch of 8
    assert moved.at(5).seen == 28 + 8 + 8
    assert before.moved(before).step == 7
    end = Position(step=16, made=16, seen=64, epochs=4, images=17, batch_size=4, steps_per_epoch=4)
    assert end.moved(now).step == 8


def test_the_digest_of_files_knows_names_and_sizes_and_not_their_folder(tmp_path):
    def files(folder: str) -> str:
        return identify(Images(Images.Options(root=tmp_path / folder)))["files"]

    write(tmp_path / "a", range(4))
    (tmp_path / "a").rename(tmp_path / "b")
    write(tmp_path / "a", range(4))
    assert files("a") == files("b")
    with (tmp_path / "a" / "003.png").open("ab") as file:
        file.write(b"\0")
    assert files("a") != files("b")


def test_the_digest_of_images_in_memory_knows_their_pixels_and_labels(tiny):
    dataset = build(tiny()).dataset
    images = dataset.images()
    before = identify(dataset, images)
    assert (before["images"], len(before["classes"])) == (32, 10)
    changed = images.clone()
    changed[5, 0, 0, 0] ^= 1
    assert identify(dataset, changed)["files"] != before["files"]
    dataset.labels = dataset.labels.roll(1)
    assert identify(dataset, images)["labels"] != before["labels"]


def test_a_shard_of_another_size_is_another_stream():
    class Sized(StreamDataset):
        shards, length, info = ("a", "b"), 8, DataInfo("sized", 3, None, (0.5,) * 3, (0.5,) * 3)
        sizes: tuple[int, ...] = (10, 20)

        def read(self, shard, position):
            yield from ()

        def shard_size(self, shard):
            return self.sizes[shard]

    stream = Sized(Sized.Options())
    before = identify(stream)
    assert before["images"] == 8
    stream.sizes = (10, 21)
    assert identify(stream)["files"] != before["files"]
