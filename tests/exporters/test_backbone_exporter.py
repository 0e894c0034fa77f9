"""The lines that the exporter prints work when pasted, and give the features that were trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.exporters.backbone.exporter import BackboneExporter
from sslcli.plugins import load


def trained(**options):
    cls = load("backbones", "resnet18")
    torch.manual_seed(0)
    backbone = cls.build(cls.Options.parse(options), 3, 32)
    card = BackboneCard(
        {"name": "resnet18", **options},
        3,
        32,
        backbone.spec.feature_dim,
        (0.5,) * 3,
        (0.2,) * 3,
        "simclr",
        "shapes",
        0,
        0.0,
        "0",
    )
    backbone(torch.randn(4, 3, 32, 32))
    return Trained(backbone.eval(), card, None)


def export(it, path):
    exporter = BackboneExporter(BackboneExporter.Options())
    return exporter.export(it, path)


@pytest.mark.parametrize("options", [{"stem": "small"}, {}, {"stem": "small", "width": 8}])
def test_the_printed_lines_give_the_trained_features(tmp_path, monkeypatch, options):
    folder = tmp_path / 'it\'s a "folder"'
    folder.mkdir()
    monkeypatch.chdir(folder)
    it = trained(**options)
    exported = export(it, Path("b.safetensors"))
    monkeypatch.chdir(tmp_path)  # pasted somewhere else
    names = {}
    exec(exported.how_to_load, names)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = names["model"].eval()(images)
        assert torch.equal(getattr(found, "pooled", found), it.backbone(images).pooled)


def test_lines_of_torchvision_need_no_sslcli(tmp_path):
    lines = export(trained(stem="small"), tmp_path / "b.safetensors").how_to_load
    assert "sslcli" not in lines.replace(str(tmp_path), "")
    assert lines == lines.strip()


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        export(trained(stem="small", width=8), tmp_path / "nowhere" / "b.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    exported = export(trained(stem="small", width=8), Path("~/b.safetensors"))
    assert exported.path == tmp_path / "b.safetensors"
    assert exported.path.is_file()
