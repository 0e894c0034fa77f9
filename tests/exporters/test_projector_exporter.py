"""The exporter `projector`: backbone and projector in one program that torch loads alone."""

from __future__ import annotations

import pytest
import torch
from export_helpers import expected, export, pasted

from sslcli.contracts.errors import UserError
from sslcli.exporters.projector import ProjectorExporter
from sslcli.runs import files
from sslcli.runs.projector import load_projector
from sslcli.runs.trained import load_trained
from sslcli.testing import check_exporter
from sslcli.training.setup import build
from sslcli.training.train import train

#: A method of each kind of projector: behind the backbone, behind kept layers, the teacher's, with other norms.
METHODS = [
    ("method=simsiam", "method.projector.hidden_dim=16", "method.projector.output_dim=8"),
    ("method=moco_v2", "method.projector.output_dim=8", "method.queue_size=32"),
    ("method=simclr_v2", "method.projector.output_dim=8", "method.keep_projector_layers=1"),
    ("method=dino", "method.head.hidden_dim=16", "method.head.bottleneck_dim=8", "method.head.prototypes=12"),
    (
        "method=byol", "method.projector.hidden_dim=16", "method.projector.norm=batch_renorm",
        "method.projector.output_dim=8",
    ),
]  # fmt: skip


def run(tiny, tmp_path, *overrides):
    small = "backbone={name: vit_tiny, patch_size: 8, depth: 1}"  # torch traces a ResNet-18 for seconds
    config = tiny(*overrides, small, "training.epochs=1", "training.max_steps=2")
    return train(config, tmp_path / "run").directory, config


@pytest.mark.parametrize(
    "overrides",
    [METHODS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in METHODS[1:])],
    ids=lambda each: each[0].partition("=")[2],
)
def test_backbone_and_projector_come_together(tiny, tmp_path, monkeypatch, overrides):
    directory, config = run(tiny, tmp_path, *overrides)
    it = load_trained(directory)
    exported = export(ProjectorExporter, it, tmp_path / "p.pt2")
    model = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)["model"]
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features, embeddings = model(images)
    torch.testing.assert_close(features, expected(it, images), rtol=1e-5, atol=1e-5)
    method = build(config).method  # the whole method, with all its weights
    checkpoint = next((directory / "checkpoints").iterdir())
    state, document = files.read(checkpoint, "method.")
    method.load_state_dict({key.removeprefix("method."): value for key, value in state.items()})
    beside = document["encoder"].removeprefix("method.").removesuffix("backbone.") + "projector"
    projector = method.eval().get_submodule(beside)
    with torch.no_grad():
        projected = projector(method.encoder()(images).pooled)
    torch.testing.assert_close(embeddings, projected, rtol=1e-5, atol=1e-5)
    assert f"(N, {embeddings.shape[1]})" in exported.how_to_load


def test_the_projector_s_exporter_keeps_its_contract(tiny, tmp_path):
    directory, _ = run(tiny, tmp_path)
    check_exporter(ProjectorExporter, trained=load_trained(directory))


def test_a_backbone_file_has_no_projector(tiny, tmp_path):
    directory, _ = run(tiny, tmp_path)
    with pytest.raises(UserError, match="holds only a backbone; name the run or one of its checkpoints"):
        load_projector(load_trained(directory / "backbone.safetensors"))


def test_a_method_without_a_projector_is_refused(tiny, tmp_path, odd_plugins):
    directory, _ = run(tiny, tmp_path, "method=mean_method")
    with pytest.raises(UserError, match="'mean_method' has no projector"):
        load_projector(load_trained(directory))
