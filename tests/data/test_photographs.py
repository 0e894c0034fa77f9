"""The way of real photographs, some of them grayscale, from their files to crops."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
import torch

from sslcli.contracts.views import ViewSpec
from sslcli.data.source import open_source
from sslcli.data.workers import WorkerSource
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.views.pipeline import ViewMaker

SHARED = Path(os.environ.get("SSLCLI_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROOT = next((path for path in (SHARED, SHARED.parent) if (path / "imagewoof-mini").is_dir()), SHARED) / "imagewoof-mini"

pytestmark = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"no photographs in {ROOT}; SSLCLI_TEST_DATA says where imagewoof-mini/ is"
)


def test_photographs_are_found_with_their_splits_and_classes() -> None:
    data = Folder(FolderOptions(root=ROOT))
    assert (len(data), len(data.info.classes or ())) == (800, 10)
    held_out = Folder.labeled(data.options, "eval")
    assert isinstance(held_out, FolderOptions)
    assert len(Folder(held_out)) == 300
    assert Folder(held_out).info.classes == data.info.classes


def test_photographs_become_crops_of_two_sizes() -> None:
    data = Folder(FolderOptions(root=ROOT, limit=24))
    operations = [{"name": "crop", "options": {}}, {"name": "flip", "options": {}}]
    specs = [ViewSpec.parse({"count": 2, "size": size, "operations": operations}) for size in (64, 32)]
    views = ViewMaker(specs, 3, data.info.mean, data.info.std, 0)
    source = open_source(data, torch.device("cpu"), 12, views=views, workers=1)
    assert isinstance(source, WorkerSource)
    try:
        batches = [batch for (batch,) in islice(source.batches(0), 2)]
    finally:
        source.close()
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(24))
    for batch in batches:
        assert [tuple(view.shape) for view in batch.images] == [(12, 3, 64, 64)] * 2 + [(12, 3, 32, 32)] * 2
        assert batch.replaced == ()
        # Two crops of one photograph have more similar colors than crops of two.
        first, second = (view.float().mean(dim=(2, 3)) for view in batch.images[:2])
        own = (first - second).abs().mean()
        assert float(own) < float((first - second.roll(1, 0)).abs().mean())
