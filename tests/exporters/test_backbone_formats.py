"""The exporter `backbone`: the tool asked for loads it, its header says in plain words what it is."""

from __future__ import annotations

import json

import pytest
import torch
from export_helpers import BACKBONES, export, features_of, of_plugin, pasted, trained, wanted
from safetensors import safe_open

import sslcli
from sslcli.contracts.errors import UserError
from sslcli.exporters.backbone.exporter import BackboneExporter
from sslcli.runs.backbone_file import load_backbone_file

FULL = [
    ("resnet18", {"stem": "small"}, 16), ("resnet18", {}, 32), ("resnet50", {}, 32),
    ("torchvision/resnext50_32x4d", {}, 32),
]  # fmt: skip
VITS = [
    ("vit_tiny", {"patch_size": 4, "depth": 2}, 16), ("vit_tiny", {"patch_size": 8, "depth": 1, "pool": "mean"}, 24),
    ("vit_tiny", {"patch_size": 4, "depth": 1, "heads": 6, "positions": "sincos"}, 16),
]  # fmt: skip


def header(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def check_lines(exported, it, tmp_path, monkeypatch):
    names = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)
    images = torch.randn(3, it.card.channels, it.card.image_size, it.card.image_size)
    torch.testing.assert_close(features_of(names["model"], images), wanted(it, images), rtol=1e-5, atol=1e-5)
    ours = sslcli.load_backbone(exported.path)
    assert not ours.training
    assert torch.equal(features_of(ours, images), wanted(it, images))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("name", "options", "size"), FULL)
def test_torchvision_loads_its_resnets(tmp_path, monkeypatch, name, options, size, channels):
    it = trained(name, options, size, channels)
    exported = export(BackboneExporter, it, tmp_path / "b.safetensors", format="torchvision")
    assert "sslcli" not in exported.how_to_load.replace(str(tmp_path), "")
    check_lines(exported, it, tmp_path, monkeypatch)
    assert header(exported.path)["key_names"] == "torchvision"


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("name", "options", "size"), [*FULL, *VITS])
def test_timm_loads_resnets_and_vision_transformers(tmp_path, monkeypatch, name, options, size, channels):
    pytest.importorskip("timm")
    it = trained(name, options, size, channels)
    exported = export(BackboneExporter, it, tmp_path / "b.safetensors", format="timm")
    assert "sslcli" not in exported.how_to_load.replace(str(tmp_path), "")
    check_lines(exported, it, tmp_path, monkeypatch)
    assert header(exported.path)["key_names"] == "timm"


@pytest.mark.parametrize(("name", "options", "size"), [*BACKBONES, *FULL])
def test_sslcli_loads_every_backbone(tmp_path, monkeypatch, name, options, size):
    it = trained(name, options, size)
    exported = export(BackboneExporter, it, tmp_path / "b.safetensors", format="sslcli")
    assert "sslcli.load_backbone" in exported.how_to_load
    check_lines(exported, it, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "options", "size", "tool"),
    [("resnet18", {"stem": "small"}, 16, "torchvision"), ("torchvision/shufflenet_v2_x0_5", {}, 32, "torchvision"),
     (*VITS[0], "timm"), (*BACKBONES[0], "sslcli"), (*BACKBONES[2], "sslcli")],
)  # fmt: skip
def test_auto_takes_the_tool_that_has_the_network(tmp_path, name, options, size, tool):
    exported = export(BackboneExporter, trained(name, options, size), tmp_path / "b.safetensors")
    assert header(exported.path)["key_names"] == tool
    assert f"import {tool}" in exported.how_to_load


@pytest.mark.parametrize(
    ("name", "options", "size", "tool", "others"),
    [(*BACKBONES[0], "torchvision", "sslcli"), (*BACKBONES[0], "timm", "sslcli"),
     (*VITS[0], "torchvision", "timm, sslcli"), (*BACKBONES[2], "timm", "sslcli"),
     ("torchvision/shufflenet_v2_x0_5", {}, 32, "timm", "torchvision, sslcli")],
)  # fmt: skip
def test_a_tool_without_the_network_is_refused_naming_those_that_have_it(tmp_path, name, options, size, tool, others):
    with pytest.raises(UserError, match=f"{tool} has no network like '{name}'.*there are: {others}$"):
        export(BackboneExporter, trained(name, options, size), tmp_path / "b.safetensors", format=tool)
    assert list(tmp_path.iterdir()) == []


def test_the_header_says_in_plain_strings_what_one_needs(tmp_path):
    path = tmp_path / "b.safetensors"
    export(BackboneExporter, of_plugin(trained(), "a-package", "1.2"), path)
    found = header(path)
    assert found["backbone"] == "resnet18"
    assert json.loads(found["backbone_options"]) == {"stem": "small", "width": 8}
    assert (found["backbone_package"], found["backbone_version"]) == ("a-package", "1.2")
    assert json.loads(found["mean"]) == [0.4, 0.5, 0.6]
    assert json.loads(found["std"]) == [0.2, 0.25, 0.3]
    expected = {"image_size": "16", "channels": "3", "feature_dim": "64", "method": "simclr", "dataset": "shapes"}
    expected |= {"step": "7", "epoch": "0.5", "sslcli_version": "0.1.0", "format": "pt"}
    assert {name: found[name] for name in expected} == expected


def test_without_another_word_the_package_is_the_installed_one(tmp_path):
    path = tmp_path / "b.safetensors"
    export(BackboneExporter, trained(), path)
    assert (header(path)["backbone_package"], header(path)["backbone_version"]) == ("sslcli", sslcli.__version__)
    assert load_backbone_file(path).plugin == {"package": "sslcli", "version": sslcli.__version__}


def test_a_missing_package_is_named_with_its_version(tmp_path):
    it = of_plugin(trained(), "sslcli-gone", "3.1")
    it.card.backbone["name"] = "gone_net"
    path = tmp_path / "b.safetensors"
    export(BackboneExporter, it, path)
    with pytest.raises(UserError, match=r"unknown backbone 'gone_net'.*made with sslcli-gone 3\.1: install it"):
        sslcli.load_backbone(path)


def test_a_changed_byte_in_the_plain_entries_is_found(tmp_path):
    path = tmp_path / "b.safetensors"
    export(BackboneExporter, trained(), path)
    content = path.read_bytes()
    for entry in (b'"image_size":"16"', b'"mean":"[0.4'):
        at = content.index(entry) + len(entry) - 2
        path.write_bytes(content[:at] + b"7" + content[at + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            sslcli.load_backbone(path)
