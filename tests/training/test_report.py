"""What a run says at its start and at its end, and that this changes nothing in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import ConfigMaker
from PIL import Image
from run_helpers import method_config, newest

from sslcli.contracts.errors import UserError
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.datasets.images import Images, ImagesOptions
from sslcli.training.estimate import estimate
from sslcli.training.quick_estimate import quick_estimate
from sslcli.training.report import start_lines
from sslcli.training.setup import build
from sslcli.training.train import train


def write_images(folder: Path, count: int = 16, **others: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.effect_noise((24, 20), 90).convert("RGB").save(folder / f"{number}.png")
    for kind, files in others.items():
        for number in range(files):
            (folder / f"{number}.{kind}").write_bytes(b"GIF89a")


def test_the_start_says_what_is_trained_on_what(tiny: ConfigMaker) -> None:
    lines = start_lines(build(tiny("training.max_steps=5", "data.limit=24")))
    assert list(lines) == ["data", "model", "device", "steps"]
    assert lines["data"] == "shapes, 24 images of 16 × 16 px, 10 classes; data.limit=24; all in memory"
    assert lines["device"] == "cpu (1 thread), fp32, nothing compiled"
    assert lines["steps"] == "5 of 9 (3 epochs of 3), 8 images each; views: 2 of 16 px"
    assert re.fullmatch(r"simclr; backbone resnet18, [\d,]+ parameters \([\d,]+ are .*heads\)", lines["model"])


def test_files_that_are_no_images_are_counted_by_kind(tiny: ConfigMaker, tmp_path: Path) -> None:
    write_images(tmp_path / "x", 6, jfif=30, GIF=30, heic=30)
    (tmp_path / "x" / ".hidden.gif").touch()
    options = ("data={name: images, root: " + str(tmp_path / "x") + "}", "training.batch_size=4", "training.workers=0")
    said = start_lines(build(tiny(*options, "views={preset: simclr, size: 16}")))["data"]
    assert said == "images, 6 images, without labels; 90 others skipped (.gif 30, .heic 30, .jfif 30)"
    write_images(tmp_path / "none", 0, gif=1)
    with pytest.raises(UserError, match=r"or below \(1 other skipped \(.gif 1\)\); set it to"):
        Images(ImagesOptions(root=tmp_path / "none"))


def test_images_beside_the_class_folders_are_counted_too_and_rare_kinds_together(tmp_path: Path) -> None:
    write_images(tmp_path / "cats", 2, **{f"kind{number}": 1 for number in range(9)})
    write_images(tmp_path, 3)
    data = Folder(FolderOptions(root=tmp_path))
    assert len(data) == 2
    assert data.skipped["images outside the class folders"] == 3
    from sslcli.data.paths import skipped_files

    assert skipped_files(data.skipped).endswith("(images outside the class folders 3, .kind0 1, .kind1 1, .kind2 1, "
                                                ".kind3 1, .kind4 1, more kinds 4)")  # fmt: skip


@pytest.mark.parametrize("method", ["simclr", "byol", "dino", "moco_v2"])
def test_the_quick_estimate_is_near_that_of_the_dry_run(method: str) -> None:
    config = method_config(
        method, "training.batch_size=32", "backbone.width=16", "data={name: shapes, count: 64, size: 32}"
    )
    session = build(config)
    before = {name: tensor.clone() for name, tensor in session.method.state_dict().items()}
    state = torch.get_rng_state()
    quick, whole = quick_estimate(session), estimate(session)
    assert (quick.problem, whole.problem) == ("", "")
    assert quick.parameters == whole.parameters
    assert quick.optimizer_state == pytest.approx(whole.optimizer_state, rel=0.02)
    assert quick.peak == pytest.approx(whole.peak, rel=0.2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in session.method.state_dict().items())


def test_the_end_says_what_came_of_it(tiny: ConfigMaker, tmp_path: Path, messages: list[str]) -> None:
    train(tiny("callbacks.knn={every_epochs: 1}", "data.count=96", "data.size=16"), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    loss = [record["loss"] for record in records if "loss" in record][-1]
    knn = [record["knn_top1"] for record in records if "knn_top1" in record and record["step"]]
    (memory,) = [line for line in messages if line.startswith("memory: ")]
    assert re.fullmatch(r"memory: about [\d.]+ MiB at the peak of a step, [\d.,]+ .iB free", memory)
    (end,) = [line for line in messages if line.startswith("done in ")]
    assert re.search(
        rf"s: 36 steps, [\d,]+ images/s; loss {loss:.4f}; kNN top-1 {knn[-1]:.1%} \(best {max(knn):.1%}, ", end
    )
    assert not any(line.startswith("quality") for line in messages)


def test_without_labels_the_end_measures_quality_and_changes_nothing(
    tiny: ConfigMaker, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "x", 16)
    options = ("data={name: images, root: " + str(tmp_path / "x") + "}", "training.workers=0", "training.epochs=2")
    config = tiny(*options, "views={preset: simclr, size: 16}")
    train(config, tmp_path / "run")
    (said,) = [line for line in messages if line.startswith("quality")]
    assert re.match(
        r"quality, without labels \(of 16 training images\): the features use about \d+ of 32 dimensions \(rank_me\); "
        r"two views of an image are \d\.\d\d apart \(alignment; 0: alike\); all images: -\d\.\d\d \(uniformity; ", said
    )  # fmt: skip
    monkeypatch.setattr("sslcli.training.train.measure_quality", lambda *_: None)
    train(config, tmp_path / "without")
    first, second = newest(tmp_path / "run").tensors, newest(tmp_path / "without").tensors
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_features_that_are_not_finite_do_not_fail_a_run_that_is_done(
    tiny: ConfigMaker, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "x", 16)

    def refuse(*_: object, **__: object) -> None:
        raise UserError("not all finite")

    monkeypatch.setattr("sslcli.evaluation.subject.extract_features", refuse)
    options = ("data={name: images, root: " + str(tmp_path / "x") + "}", "training.workers=0", "training.epochs=1")
    train(tiny(*options, "views={preset: simclr, size: 16}"), tmp_path / "run")
    assert "warning: quality: not measured: not all finite" in messages
