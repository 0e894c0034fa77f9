"""SimCLR's second version: its head, and the first layers of it that can stay with the backbone, also in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import sslcli
from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, RunInfo, View
from sslcli.methods.simclr import SimCLR, SimCLROptions
from sslcli.methods.simclr_v2 import SimCLRv2, SimCLRv2Options
from sslcli.modules.headed import HeadedBackbone
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.metrics import read_metrics
from sslcli.runs.trained import load_trained
from sslcli.training.setup import build
from sslcli.training.train import train

RUN = RunInfo(10, 5, 2, 6, 1, DataInfo("test", 3, (16, 16), (0.5,) * 3, (0.25,) * 3))
WIDTH = 32  # features of a ResNet-18 of width 4


def method(cls: Any = SimCLRv2, **options: object) -> Any:
    torch.manual_seed(0)
    backbone = ResNet18(ResNetOptions(stem="small", width=4, zero_init_residual=False))
    options_class = SimCLRv2Options if cls is SimCLRv2 else SimCLROptions
    return cls(backbone, options_class.parse(options), RUN)


def batch(*sizes: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = [View(torch.randn(6, 3, size, size, generator=generator)) for size in sizes or (16, 16)]
    return Batch(views, None, torch.arange(6), {})


def shapes(head: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(part.weight.shape) for part in head.modules() if isinstance(part, nn.Linear)]


def test_it_is_simclr_with_another_head() -> None:
    options = {"temperature": 0.3, "projector": {"layers": 3, "output_dim": 8}}
    first, second = method(SimCLR, **options), method(**options)
    one, other = first(batch()), second(batch())
    assert torch.equal(one.loss, other.loss)
    assert set(one.metrics) == set(other.metrics) == {"pos_cos", "neg_cos", "contrast_top1", "contrast_top5"}
    assert torch.equal(first(batch(16, 16, 8)).loss, second(batch(16, 16, 8)).loss)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("layers", [1, 2])
def test_kept_layers_belong_to_the_encoder_and_do_not_change_training(norm: str, layers: int) -> None:
    head = {"hidden_dim": 24, "output_dim": 8, "norm": norm}
    plain, kept = method(projector=head), method(projector=head, keep_projector_layers=layers)
    for step in range(2):
        losses = [each(batch()).loss for each in (plain, kept)]
        assert torch.equal(*losses), step
        for each, loss in zip((plain, kept), losses, strict=True):
            optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert len(list(plain.parameters())) == len(list(kept.parameters()))
    assert shapes(kept.encoder().head) == [(24, WIDTH), (24, 24)][:layers]
    assert shapes(kept.projector) == [(24, 24), (8, 24)][layers - 1 :]
    assert [*kept.encoder().head.state_dict(), *kept.projector.state_dict()] == list(plain.projector.state_dict())
    fresh = HeadedBackbone(plain.backbone, kept.encoder().options)
    fresh.head.load_state_dict(kept.encoder().head.state_dict(), strict=True)
    plain.eval(), kept.eval()
    assert kept.encoder().spec.feature_dim == kept(batch()).features.shape[1] == 24
    images = batch().views[0].image
    with torch.no_grad():
        hidden = plain.projector[: layers * (3 if norm == "batch" else 2)](plain.backbone(images).pooled)
        assert torch.equal(kept.encoder()(images).pooled, hidden)


def test_a_layer_that_is_not_hidden_cannot_be_kept() -> None:
    with pytest.raises(ValidationError, match="keep_projector_layers is 3, and a projector of 3 layers has 2 hidden"):
        SimCLRv2Options.parse({"keep_projector_layers": 3})


def test_kept_layers_refuse_masks_and_follow_another_backbone_only() -> None:
    encoder = method(keep_projector_layers=1).encoder()
    with pytest.raises(UserError, match="no tokens and no layers"):
        encoder(batch().views[0].image, torch.zeros(6, 4, dtype=torch.bool))
    with pytest.raises(UserError, match="not a backbone by themselves"):
        type(encoder).build(encoder.options, 3, 16)


V2 = "{name: simclr_v2, keep_projector_layers: 1, projector: {hidden_dim: 24, output_dim: 8}}"


def quiet(line: str) -> None:
    """Discards a run's messages."""


@pytest.fixture
def run(tiny, tmp_path: Path) -> Path:
    """Two steps, with the first layer kept."""
    train(tiny(f"method={V2}", "training.max_steps=2"), tmp_path / "run", tell=quiet)
    return tmp_path / "run"


def test_files_of_a_run_restore_the_kept_layers(run: Path, tiny, tmp_path: Path) -> None:
    trained = build(tiny(f"method={V2}")).method
    newest = read_checkpoint(list_checkpoints(run / "checkpoints")[0])
    prefix = "method."
    trained.load_state_dict(
        {name.removeprefix(prefix): value for name, value in newest.tensors.items() if name.startswith(prefix)}
    )
    images = torch.randn(4, 3, 16, 16)
    trained.eval().to(memory_format=torch.contiguous_format)  # as what is loaded from a file
    with torch.no_grad():
        expected = trained.encoder()(images).pooled
    exported = sslcli.export(run, "backbone", tmp_path / "exported.safetensors")
    names: dict[str, Any] = {}
    exec(exported.how_to_load, names)
    again = sslcli.export(exported.path, "backbone", tmp_path / "again.safetensors").path
    files = [run, newest.path, run / "backbone.safetensors", exported.path, again]
    for loaded in [names["model"], *(sslcli.load_backbone(file) for file in files)]:
        assert not loaded.training
        assert loaded.spec.feature_dim == 24
        with torch.no_grad():
            assert torch.equal(loaded(images).pooled, expected)
    card = load_trained(run).card
    assert card.feature_dim == 24
    assert card.backbone["name"] == "resnet18"
    assert card.head == {"layers": 1, "hidden_dim": 24, "norm": "batch"}


def test_an_evaluation_of_kept_layers_reports_them(run: Path) -> None:
    protocol = sslcli.evaluate(run, "knn", {"k": [2]}, device="cpu").protocol
    assert protocol["feature_dim"] == 24
    assert protocol["projector_layers"] == {"layers": 1, "hidden_dim": 24, "norm": "batch"}


def test_a_card_whose_head_does_not_fit_the_weights_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from sslcli.runs.backbone_file import load_backbone_file, save_backbone

    it = load_backbone_file(run / "backbone.safetensors")
    for head, message in [
        ({"layers": 1, "hidden_dim": 25}, "do not fit"),
        ({"layers": 0}, "rejects"),
        (None, "do not fit"),
    ]:
        save_backbone(tmp_path / "b.safetensors", it.backbone, replace(it.card, head=head))
        with pytest.raises(UserError, match=message) as caught:
            load_backbone_file(tmp_path / "b.safetensors")
        assert "\n" not in str(caught.value)


def test_a_resumed_run_with_kept_layers_is_the_run_that_never_stopped(tiny, tmp_path: Path) -> None:
    config = (f"method={V2}", "training.epochs=1", "training.log_every=1")
    train(tiny(*config), tmp_path / "whole", tell=quiet)
    train(tiny(*config, "training.max_steps=2"), tmp_path / "halves", tell=quiet)
    train(tiny(*config), tmp_path / "halves", resume=True, tell=quiet)
    whole, halves = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "halves"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in halves]
    both = [read_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[0]) for name in ("whole", "halves")]
    assert all(torch.equal(tensor, both[1].tensors[name]) for name, tensor in both[0].tensors.items())
    with pytest.raises(UserError, match="keep_projector_layers"):
        train(tiny(*config, "method.keep_projector_layers=0"), tmp_path / "halves", resume=True, tell=quiet)
