"""The exporter `backbone`: the printed lines load the trained features in the tool asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_helpers import BACKBONES, expected, export, features_of, of_plugin, pasted, trained
from safetensors import safe_open

import sslcli
from sslcli.contracts.errors import UserError
from sslcli.exporters.backbone import BackboneExporter
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


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("tool", "channels", "name", "options", "size"),
    [
        ("torchvision", 1, *FULL[0]),
        ("timm", 3, *VITS[0]),
        *(("sslcli", 3, *each) for each in BACKBONES),
        *(pytest.param("torchvision", channels, *each, marks=SLOW) for each in FULL for channels in (3, 1)),
        *(pytest.param("timm", channels, *each, marks=SLOW) for each in (*FULL, *VITS) for channels in (3, 1)),
        *(pytest.param("sslcli", 3, *each, marks=SLOW) for each in FULL),
    ],
)
def test_the_tool_loads_its_networks(tmp_path, monkeypatch, tool, channels, name, options, size):
    pytest.importorskip(tool)
    it = trained(name, options, size, channels)
    exported = export(BackboneExporter, it, tmp_path / "it's a 'file'.safetensors", format=tool)
    assert ("sslcli" in exported.how_to_load.replace(str(tmp_path), "")) is (tool == "sslcli")
    assert header(exported.path)["key_names"] == tool
    names = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)
    images = torch.randn(3, it.card.channels, it.card.image_size, it.card.image_size)
    torch.testing.assert_close(features_of(names["model"], images), expected(it, images), rtol=1e-5, atol=1e-5)
    ours = sslcli.load_backbone(exported.path)
    assert not ours.training
    assert torch.equal(features_of(ours, images), expected(it, images))


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
    with pytest.raises(UserError, match=f"{tool} has no network like '{name}'.*available: {others}$"):
        export(BackboneExporter, trained(name, options, size), tmp_path / "b.safetensors", format=tool)
    assert list(tmp_path.iterdir()) == []


def test_the_header_has_all_that_its_use_takes_in_plain_strings(tmp_path):
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
    export(BackboneExporter, trained(), path)  # where the package is not known, it is the installed one
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


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    exported = export(BackboneExporter, trained(), Path("~/b.safetensors"))
    assert exported.path == tmp_path / "b.safetensors"
    assert exported.path.is_file()
