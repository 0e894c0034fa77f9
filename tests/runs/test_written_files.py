"""Files of every version are read: `tests/written_files/VERSION`, which `tests/written_files/write.py` wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import done, machine, newest
from torch import Tensor

from sslcli.data.cache.file import CachedImages
from sslcli.evaluation.classifier import load_classifier
from sslcli.runs.backbone_file import load_backbone_file
from sslcli.runs.overview import summarize
from sslcli.runs.trained import load_trained

FOLDER = Path(__file__).parents[1] / "written_files"
VERSIONS = sorted(path.name for path in FOLDER.iterdir() if (path / "about.json").is_file())

pytestmark = pytest.mark.parametrize("version", VERSIONS)


def about(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / version / "about.json").read_text())
    return found


def state(path: Path) -> dict[str, Tensor]:
    return load_backbone_file(path).backbone.state_dict()


def assert_same(version: str, found: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """To the bit on the machine that the files are from, close on others, whose kernels differ."""
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        if about(version)["machine"] == machine():
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_a_run_is_resumed_to_the_weights_that_it_always_had(version: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(FOLDER / version / "run", tmp_path / "run"))
    assert (summarize(run).step, summarize(run).method) == (6, "simclr")
    done("train", run, "--resume", "training.max_steps=null")
    assert newest(run).step == 8
    assert_same(version, state(run / "backbone.safetensors"), state(FOLDER / version / "backbone.safetensors"))


def test_a_run_and_a_backbone_file_are_evaluated_and_exported(version: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(FOLDER / version / "run", tmp_path / "run"))
    done("eval", run, FOLDER / version / "backbone.safetensors", "--method", "knn", "k=[5]")
    result = json.loads((run / "eval/knn.json").read_text())
    assert result["protocol"]["card"]["step"] == 6
    done("export", "backbone", run, "--output", tmp_path / "x.safetensors")
    exported, trained = state(tmp_path / "x.safetensors"), load_trained(run).backbone.state_dict()
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)


def test_a_classifier_says_what_it_said(version: str) -> None:
    from written_files.write import scores

    found = scores(load_classifier(FOLDER / version / "run"))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(about(version)["scores"]), rtol=1e-3, atol=1e-4)


def test_an_image_cache_has_the_same_pixels(version: str) -> None:
    from written_files.write import pixels

    images = CachedImages(FOLDER / version / "images.cache", 2, 3, bytes.fromhex(about(version)["key"]))
    found = [image for image in (images[0], images[1]) if image is not None]
    assert pixels(found) == about(version)["pixels"]
