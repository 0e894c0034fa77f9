"""Datasets whose items are dictionaries, as those of Hugging Face are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from api_helpers import Arrays, Net, states_equal, tiny_run
from PIL import Image

from sslcli.contracts.errors import UserError


class Table:
    """Rows of columns: a number gives a row, a name a column; pictures are decoded when they are asked for."""

    column_names = ("img", "fine_label", "label")

    def __init__(self, data: Arrays) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [row[key] for row in map(self.__getitem__, range(len(self)))]
        pixels, label = self.data[key]
        return {"img": Image.fromarray(pixels), "fine_label": 7, "label": np.int64(label)}


def test_a_table_of_dictionaries_trains_and_evaluates_like_pairs(tmp_path) -> None:
    train, test, same = Arrays(40), Arrays(20, seed=1), {"backbone": Net(), "callbacks": {"progress": None}}
    pairs = tiny_run(tmp_path / "pairs", data=train, labeled=(train, test), **same)
    rows, held_out = Table(train), Table(test)
    run = tiny_run(tmp_path / "rows", data=rows, labeled=(rows, held_out), **same)
    assert states_equal(run.backbone(), pairs.backbone())
    assert any("knn_top1" in line for line in run.metrics)
    assert run.evaluate("knn", k=[3]).metrics == pairs.evaluate("knn", k=[3]).metrics


def test_a_dictionary_without_an_image_names_its_keys(tmp_path) -> None:
    rows = [{"picture": Image.new("RGB", (8, 8)), "label": 1}] * 20
    with pytest.raises(
        UserError, match=r"python:list\[0\]: a mapping without the key 'image'; it has 'picture', 'label'$"
    ):
        tiny_run(tmp_path / "run", data=rows)
