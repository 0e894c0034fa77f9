"""The page's lines that put an exported ResNet into detectors: they run, and the names are those of the detectors."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sslcli.backbones.resnet import ResNet50, ResNetOptions

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Detection and segmentation") : PAGE.index("## Classifiers")]
TORCHVISION, DETECTRON2 = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


@pytest.mark.slow  # a ResNet-50, three times
def test_the_lines_for_detectors_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = ResNet50(ResNetOptions(stem="standard")).export_state()[0]
    save_file({name: value.contiguous() for name, value in ours.items()}, "resnet50.safetensors")
    names: dict[str, object] = {}
    exec(TORCHVISION + DETECTRON2, names)
    body = names["pyramid"].body.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in body.items())
    weights = pickle.loads(Path("resnet50.pkl").read_bytes())["model"]
    # Of detectron2's R-50: a stem, stages of 3, 4, 6 and 3 blocks with three convolutions, a shortcut in the first one.
    layers = ["stem.conv1"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=2):
        layers += [f"res{stage}.{block}.conv{number}" for block in range(blocks) for number in (1, 2, 3)]
        layers.append(f"res{stage}.0.shortcut")
    norms = [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    assert weights.keys() == {f"{layer}.{name}" for layer in layers for name in ("weight", *norms)}
    assert (weights["res3.0.shortcut.weight"] == ours["layer2.0.downsample.0.weight"].numpy()).all()
    assert (weights["res5.2.conv3.norm.bias"] == ours["layer4.2.bn3.bias"].numpy()).all()
