"""The exporters `torch-export` and `projector`: programs that torch loads alone, for any batch size."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from export_helpers import BACKBONES, export, features_of, pasted, scaled, trained, wanted
from torch import nn

import sslcli
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.errors import SslError, UserError
from sslcli.exporters import torch_export
from sslcli.exporters.network import Network
from sslcli.exporters.projector import ProjectorExporter
from sslcli.exporters.torch_export import TorchExporter
from sslcli.runs import files
from sslcli.runs.projector import load_projector
from sslcli.runs.trained import load_trained
from sslcli.testing import check_exporter
from sslcli.training.setup import build
from sslcli.training.train import train


class Unfollowable(Backbone):
    """What it does depends on the values of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(4)
        self.layer = nn.Linear(3, 4)

    @classmethod
    def build(cls, options, channels, image_size):
        return cls()

    def forward(self, x, mask=None):
        pixels = x.mean(dim=(2, 3))
        return Features(self.layer(pixels if float(pixels.sum()) > 0 else -pixels))


@pytest.mark.parametrize(("name", "options", "size"), BACKBONES)
def test_the_printed_lines_give_the_trained_features_for_any_batch_size(tmp_path, monkeypatch, name, options, size):
    it = trained(name, options, size)
    exported = export(TorchExporter, it, tmp_path / "it's one.pt2")
    model = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)["model"]
    for count in (1, 2, 5):
        images = torch.randn(count, 3, size, size)
        torch.testing.assert_close(features_of(model, images), wanted(it, images), rtol=1e-5, atol=1e-5)


def test_normalize_takes_images_between_0_and_1(tmp_path, monkeypatch):
    it, images = trained(), torch.rand(3, 3, 16, 16)
    exported = export(TorchExporter, it, tmp_path / "b.pt2", normalize=True)
    assert "in [0, 1]\n" in exported.how_to_load
    model = pasted(exported.how_to_load, tmp_path, monkeypatch)["model"]
    torch.testing.assert_close(features_of(model, images), wanted(it, scaled(it, images)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_program_is_loaded_without_sslcli(tmp_path):
    lines = export(TorchExporter, trained(), tmp_path / "b.pt2").how_to_load
    code = f"import sys; sys.modules['sslcli'] = None\n{lines}\nprint(model(torch.zeros(3, 3, 16, 16)).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([3, 64])\n", done.stderr


def test_the_program_carries_what_one_needs_to_use_it(tmp_path):
    found = dict.fromkeys(["mean", "method", "image_size", "backbone_package", "normalize"], "")
    export(TorchExporter, trained(), tmp_path / "b.pt2")
    torch.export.load(tmp_path / "b.pt2", extra_files=found)
    expected = {"method": "simclr", "image_size": "16", "backbone_package": "sslcli", "normalize": "false"}
    text = {name: each.decode() if isinstance(each, bytes) else each for name, each in found.items()}
    assert {name: text[name] for name in expected} == expected
    assert json.loads(text["mean"]) == [0.4, 0.5, 0.6]


def test_what_torch_cannot_follow_is_one_line_and_no_file(tmp_path):
    it = trained()
    it.backbone = Unfollowable().eval()
    with pytest.raises(UserError, match=r"torch\.export cannot follow its code") as caught:
        export(TorchExporter, it, tmp_path / "b.pt2")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_program_with_other_features_is_not_written(tmp_path, monkeypatch):
    real, other = torch_export.trace, trained()
    with torch.no_grad():
        other.backbone.network.bn1.bias.add_(0.5)
    monkeypatch.setattr(torch_export, "trace", lambda network, card: real(Network(other, normalize=False), card))
    with pytest.raises(SslError, match="not written: its features differ from torch's by"):
        export(TorchExporter, trained(), tmp_path / "b.pt2")
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"wants a name that ends in \.pt2"):
        export(TorchExporter, trained(), tmp_path / "b.bin")


def test_load_backbone_says_who_loads_a_program(tmp_path):
    path = tmp_path / "b.pt2"
    export(TorchExporter, trained(), path)
    with pytest.raises(UserError, match=r"is an exported program, which torch\.export\.load\(\.\.\.\)\.module\(\)"):
        sslcli.load_backbone(path)


# --- projector

#: A method of each kind of projector: behind the backbone, behind kept layers, the teacher's, with other norms.
METHODS = [
    ("method=simsiam", "method.projector.hidden_dim=16", "method.projector.output_dim=8"),
    ("method=moco_v2", "method.projector.output_dim=8", "method.queue_size=32"),
    ("method=simclr_v2", "method.projector.output_dim=8", "method.keep_projector_layers=1"),
    ("method=dino", "method.head.hidden_dim=16", "method.head.bottleneck_dim=8", "method.head.prototypes=12"),
    (
        "method=byol",
        "method.projector.hidden_dim=16",
        "method.projector.norm=batch_renorm",
        "method.projector.output_dim=8",
    ),
]


def run(tiny, tmp_path, *overrides):
    config = tiny(*overrides, "training.epochs=1", "training.max_steps=2")
    return train(config, tmp_path / "run").directory, config


@pytest.mark.parametrize("overrides", METHODS, ids=lambda each: each[0].partition("=")[2])
def test_backbone_and_projector_come_together(tiny, tmp_path, monkeypatch, overrides):
    directory, config = run(tiny, tmp_path, *overrides)
    it = load_trained(directory)
    exported = export(ProjectorExporter, it, tmp_path / "p.pt2")
    model = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)["model"]
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features, embeddings = model(images)
    torch.testing.assert_close(features, wanted(it, images), rtol=1e-5, atol=1e-5)
    method = build(config).method  # the whole method, with all its weights
    checkpoint = next((directory / "checkpoints").iterdir())
    state, document = files.read(checkpoint, "method.")
    method.load_state_dict({key.removeprefix("method."): value for key, value in state.items()})
    beside = document["encoder"].removeprefix("method.").removesuffix("backbone.") + "projector"
    projector = method.eval().get_submodule(beside)
    with torch.no_grad():
        expected = projector(method.encoder()(images).pooled)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)
    assert f"(N, {embeddings.shape[1]})" in exported.how_to_load


def test_the_projector_s_exporter_keeps_its_contract(tiny, tmp_path):
    directory, _ = run(tiny, tmp_path)
    check_exporter(ProjectorExporter, trained=load_trained(directory))


def test_a_backbone_file_has_no_projector(tiny, tmp_path):
    directory, _ = run(tiny, tmp_path)
    with pytest.raises(UserError, match="holds a backbone alone; name the run or one of its checkpoints"):
        load_projector(load_trained(directory / "backbone.safetensors"))


def test_a_method_without_a_projector_is_told(tiny, tmp_path, odd_plugins):
    directory, _ = run(tiny, tmp_path, "method=mean_method")
    with pytest.raises(UserError, match="'mean_method' has no projector beside its backbone"):
        load_projector(load_trained(directory))


def test_loading_a_projector_draws_nothing(tiny, tmp_path):
    directory, _ = run(tiny, tmp_path)
    it, before = load_trained(directory), torch.get_rng_state()
    load_projector(it)
    assert torch.equal(before, torch.get_rng_state())
