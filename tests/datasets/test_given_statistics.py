"""`data.mean` and `data.std`, which every dataset takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sslcli.contracts.data import Dataset, DatasetOptions
from sslcli.contracts.errors import UserError
from sslcli.data import files
from sslcli.plugins import find, load
from sslcli.runs.backbone_file import load_backbone_file
from sslcli.training.train import train

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
NAMES = [plugin.name for plugin in find("datasets") if plugin.package == "sslcli"]


@pytest.mark.parametrize("name", NAMES)
def test_every_datasets_options_take_them(name: str) -> None:
    options: DatasetOptions = load("datasets", name).Options.parse({"mean": MEAN, "std": STD})
    assert (options.mean, options.std) == (tuple(MEAN), tuple(STD))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": MEAN}, "mean and std need each other"),
        ({"std": STD}, "mean and std need each other"),
        ({"mean": MEAN, "std": [0.5]}, "as many numbers: 3 and 1"),
        ({"mean": MEAN, "std": [0.5, 0.0, 0.5]}, "greater than 0"),
        ({"mean": ["a"], "std": [0.5]}, "valid number"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        load("datasets", "shapes").Options.parse(given)


def test_an_opened_dataset_is_normalized_with_them_and_their_number_must_fit() -> None:
    cls: type[Dataset] = load("datasets", "shapes")
    own = cls.open(cls.Options.parse({"count": 4})).info
    given = cls.open(cls.Options.parse({"count": 4, "mean": MEAN, "std": STD})).info
    assert (given.mean, given.std) == (tuple(MEAN), tuple(STD)) != (own.mean, own.std)
    with pytest.raises(UserError, match=r"^data\.mean, data\.std: 1 numbers each, but images have 3 channel"):
        cls.open(cls.Options.parse({"count": 4, "mean": [0.5], "std": [0.5]}))


def test_given_statistics_are_not_measured_and_keep_for_labeled_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / part / "a" / "1.png")
    cls: type[Dataset] = load("datasets", "folder")
    options = cls.Options.parse({"root": str(tmp_path), "normalization": "measured", "mean": MEAN, "std": STD})
    monkeypatch.setattr(files, "measure", lambda *arguments: pytest.fail("measured"))
    assert cls.open(options).info.mean == tuple(MEAN)
    held_out = cls.labeled(options, "eval")
    assert held_out is not None
    assert cls.open(held_out).info.std == tuple(STD)


def test_a_run_records_them_on_the_backbones_card_and_a_resumption_keeps_to_them(tiny, tmp_path: Path) -> None:
    given = f"data={{name: shapes, count: 16, size: 16, mean: {MEAN}, std: {STD}}}"
    train(tiny(given, "training.epochs=1"), tmp_path / "run")
    card = load_backbone_file(tmp_path / "run" / "backbone.safetensors").card
    assert (card.mean, card.std) == (tuple(MEAN), tuple(STD))
    with pytest.raises(UserError, match=r"data\.mean: \[0\.1, 0\.2, 0\.3\] in the run, None now"):
        train(tiny("data={name: shapes, count: 16, size: 16}", "training.epochs=2"), tmp_path / "run", resume=True)
