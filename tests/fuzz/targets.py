"""What is fuzzed: small real files, and what reads each of them."""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import mutations
import numpy as np
import torch
from conftest import TINY
from PIL import Image

from sslcli import plugins
from sslcli.config.document import Document, dump_yaml
from sslcli.config.merge import read_config
from sslcli.config.resolve import resolve
from sslcli.contracts.errors import UnreadableImage
from sslcli.contracts.export import Classifier
from sslcli.data.cache.dataset import CachedDataset
from sslcli.data.decode import decode, decoded_size
from sslcli.datasets.images import Images, ImagesOptions
from sslcli.evaluation.classifier import load_classifier, save_classifier
from sslcli.evaluation.results import _set_aside
from sslcli.runs.backbone_file import load_backbone_file
from sslcli.runs.checkpoint import list_checkpoints, newest_intact, read_checkpoint
from sslcli.runs.directory import RunDirectory
from sslcli.runs.metrics import read_metrics
from sslcli.runs.overview import summarize
from sslcli.runs.trained import load_trained
from sslcli.runs.weights import fill, read_weights
from sslcli.training import prepare
from sslcli.training import train as training
from sslcli.training.setup import Session, build

PLUGIN = '''"""A plugin."""
from sslcli.contracts.optimizer import Schedule, ScheduleOptions
class HalfOptions(ScheduleOptions):
    part: float = 0.5
    """A part."""
class Half(Schedule):
    """Half."""
    Options = HalfOptions
    def __call__(self, step): return self.base * self.options.part
'''


@dataclass
class Target:
    """Something that is read: the content of its seeds, how they are changed, and what reads them.

    Attributes:
        file: relative to the folder of a trial.
        seeds: contents of the file.
        read: given the file; raises what users are shown.
        change: writes a changed seed.
        kept: whether reading may not change the file.
    """

    file: str
    seeds: list[bytes]
    read: Callable[[Path], object]
    change: Callable[[Path, bytes, random.Random], object] = field(
        default=lambda path, content, chance: path.write_bytes(mutations.of_bytes(content, chance))
    )
    kept: bool = True


def _config(path: Path) -> None:
    resolve(read_config(path, []))


def _plugin(path: Path) -> None:
    try:
        plugins.register_file(path)
    finally:
        plugins.clear_cache()


def _image(path: Path) -> None:
    decoded_size(path)
    for channels in (3, 1):
        try:
            image = decode(path, channels, 8)
        except UnreadableImage as error:
            if "\n" in str(error):
                raise ValueError("more than one line") from error
            continue
        assert image.dtype == torch.uint8
        assert image.ndim == 3
        assert image.numel() > 0


def _log(path: Path) -> None:
    run = RunDirectory(path.parent)
    assert all(isinstance(record["step"], int) for record in read_metrics(path))
    summarize(path.parent)
    run.open_log(from_step=2)
    run.close()


def _environment(path: Path) -> None:
    run = RunDirectory(path.parent)
    summarize(path.parent)
    run._write_environment(["ssl"], {"steps": 3}, resumed=True)
    run.record_end("done")


def _result(path: Path) -> None:
    try:
        load_classifier(path)
    finally:
        with _set_aside(path):
            pass


def _json(path: Path, content: bytes, chance: random.Random) -> None:
    """Half of the time the data, a line each for a log; else bytes."""
    if chance.random() < 0.5:
        path.write_bytes(mutations.of_bytes(content, chance))
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        path.write_text("\n".join(map(json.dumps, [mutations.of_data(line, chance) for line in lines])))
    else:
        path.write_text(json.dumps(mutations.of_data(json.loads(content), chance)))


def _yaml(path: Path, content: bytes, chance: random.Random) -> None:
    if chance.random() < 0.5:
        path.write_bytes(mutations.of_bytes(content, chance))
    else:
        data = mutations.of_data(json.loads(json.dumps(TINY)), chance)
        path.write_text(dump_yaml(data if isinstance(data, dict) else {"x": data}), encoding="utf-8")


class _Resume:
    """Reads a checkpoint as `--resume` does, into a session that is built once, and takes a step of the optimizer."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, path: Path) -> None:
        load_trained(path.parent.parent)
        checkpoint = newest_intact(path.parent, read_checkpoint)
        assert checkpoint is not None
        optimizer = self.session.optimizer
        with mock.patch.object(prepare, "build", return_value=self.session):
            prepare.prepared(self.session.config, checkpoint, path.parent.parent)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


def _images() -> list[bytes]:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    found = []
    for kind, image, options in (
        ("JPEG", pixels, {"exif": exif}), ("JPEG", pixels.convert("CMYK"), {"progressive": True}), ("PNG", pixels, {}),
        ("PNG", pixels.convert("RGBA").quantize(16), {"transparency": 0}), ("WEBP", pixels, {"exif": exif}),
        ("BMP", pixels, {}), ("TIFF", pixels, {"compression": "tiff_lzw", "exif": exif}), ("TIFF", pixels, {}),
        ("PPM", pixels, {}), ("PNG", Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20)), {}),
        ("PNG", pixels, {"save_all": True, "append_images": [pixels]}), ("MPO", pixels, {"append_images": [pixels]}),
    ):  # fmt: skip
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return found


def make_targets(folder: Path) -> dict[str, Target]:
    """Trains a tiny run in `folder`, and returns the targets; trials are made in `folder/trial`."""
    config = resolve(Document(json.loads(json.dumps(TINY)), {(): "test"}))
    run = folder / "run"
    training.train(config, run)
    trained = load_trained(run)
    (run / "eval").mkdir()
    about = Classifier(torch.zeros(2, trained.card.feature_dim), torch.zeros(2), ("a", "b"), "linear")
    sha = save_classifier(run / "eval" / "linear.safetensors", type(trained)(**{**vars(trained), "classifier": about}))
    result = {"metrics": {"top1": 0.5}, "method": "linear", "classifier": {"file": "linear.safetensors", "sha256": sha}}
    session = build(config, fresh=False)
    state = read_weights(run / "backbone.safetensors", {})
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 1}, folder / "w.pth")
    photos = folder / "photos"
    photos.mkdir()
    for number, content in enumerate(_images()[2:4]):
        (photos / f"{number}.png").write_bytes(content)
    options = ImagesOptions.parse({"root": str(photos), "cache": "disk", "cache_dir": str(folder / "trial")})

    def cache() -> CachedDataset:
        return CachedDataset(Images.open(options), None, "disk", 0)

    (folder / "trial").mkdir()
    made = cache()
    made.prepare()
    kept = made.path.read_bytes()
    backbone = trained.backbone

    def weights(path: Path) -> None:
        fill(backbone, read_weights(path, backbone.export_state()[0]), str(path), "resnet18")

    checkpoint = list_checkpoints(run / "checkpoints")[0]
    whole = mutations.of_safetensors
    return {
        "config": Target("c.yaml", [dump_yaml(TINY).encode()], _config, _yaml),
        "run config": Target("run/config.yaml", [(run / "config.yaml").read_bytes()], _config),
        "checkpoint": Target(f"run/checkpoints/{checkpoint.name}", [checkpoint.read_bytes()], _Resume(session), whole),
        "backbone": Target("b.safetensors", [(run / "backbone.safetensors").read_bytes()], load_backbone_file, whole),
        "classifier": Target(
            "run/eval/linear.safetensors", [(run / "eval" / "linear.safetensors").read_bytes()], load_classifier, whole
        ),
        "weights": Target("w.pth", [(folder / "w.pth").read_bytes(), checkpoint.read_bytes()], weights),
        "cache": Target(made.path.name, [kept], lambda path: cache().prepare(), kept=False),
        "log": Target("run/metrics.jsonl", [(run / "metrics.jsonl").read_bytes()], _log, _json, kept=False),
        "environment": Target(
            "run/environment.json", [(run / "environment.json").read_bytes()], _environment, _json, kept=False
        ),
        "result": Target("run/eval/linear.json", [json.dumps(result).encode()], _result, _json, kept=False),
        "plugin": Target("p.py", [PLUGIN.encode()], _plugin),
        "image": Target("i.png", _images(), _image),
    }  # fmt: skip


@contextmanager
def trial(folder: Path, *, with_run: bool) -> Iterator[Path]:
    """A folder for one example, empty or with a run; nothing is shown meanwhile."""
    here = folder / "trial"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    if with_run:
        shutil.copytree(folder / "run", here / "run")
    level = logging.getLogger("sslcli").level
    logging.getLogger("sslcli").setLevel(logging.CRITICAL)
    try:
        yield here
    finally:
        logging.getLogger("sslcli").setLevel(level)
