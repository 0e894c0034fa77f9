"""The initial weights of a run's backbone, from a file or as published; read when the run starts, and never again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import assert_same_end, newest
from safetensors.torch import load_file, save_file

import sslcli
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.plugins import load
from sslcli.runs.checkpoint import list_checkpoints
from sslcli.runs.trained import load_trained
from sslcli.training.resume import differences
from sslcli.training.setup import build
from sslcli.training.train import train


@pytest.fixture
def trained(tiny, tmp_path) -> Path:
    """The backbone file of a tiny run."""
    train(tiny("training.epochs=1"), tmp_path / "first")
    return tmp_path / "first" / "backbone.safetensors"


def backbone_of(config) -> dict[str, torch.Tensor]:
    return build(config).method.encoder().export_state()[0]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]


def refusal(config) -> str:
    with pytest.raises(UserError) as caught:
        build(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_starts_from_the_backbone_of_another(tiny, trained, messages) -> None:
    messages.clear()
    assert_equal(backbone_of(tiny(f"backbone.weights={trained}")), load_file(trained))
    assert messages[0] == f"backbone.weights: {trained}: the backbone starts from these weights"
    # The momentum encoder too; heads are those of a run that starts from scratch.
    states = [build(tiny(*more, "method=byol")).method.state_dict() for more in ([], [f"backbone.weights={trained}"])]
    scratch, started = states
    copies = [key for key in started if key.endswith("conv1.weight") and "layer" not in key]
    assert len(copies) == 2
    assert all(torch.equal(started[key], load_file(trained)["conv1.weight"]) for key in copies)
    heads = [key for key in scratch if "backbone." not in key]
    assert heads
    assert not [key for key in heads if not torch.equal(scratch[key], started[key])]


def test_a_classifier_is_left_out_and_missing_counters_are_ignored(tiny, trained, tmp_path, messages) -> None:
    state = {key: value for key, value in load_file(trained).items() if not key.endswith("num_batches_tracked")}
    save_file({**state, "fc.weight": torch.ones(10, 32), "fc.bias": torch.ones(10)}, tmp_path / "theirs.safetensors")
    found = backbone_of(tiny(f"backbone.weights={tmp_path}/theirs.safetensors"))
    assert_equal({key: found[key] for key in state}, state)
    assert messages[0].endswith("starts from these weights, without the classifier (fc.bias, fc.weight)")


def test_the_path_is_relative_to_the_working_directory_or_to_home(tiny, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(trained.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("backbone.safetensors", "~/first/backbone.safetensors"):
        assert_equal(backbone_of(tiny(f"backbone.weights={name}")), load_file(trained))


def test_weights_that_do_not_fit_are_refused_with_the_first_key_that_differs(tiny, trained, tmp_path) -> None:
    save_file({**load_file(trained), "layer5.weight": torch.ones(1)}, tmp_path / "more.safetensors")
    for backbone, message in (
        (
            f"name: resnet18, stem: small, width: 8, weights: {trained}",
            "'conv1.weight' is (4, 3, 3, 3) there, but (8, ",
        ),
        (f"name: vit_tiny, patch_size: 8, depth: 1, weights: {trained}", "has no 'cls_token', which 'vit_tiny' needs"),
        (f"weights: {tmp_path}/more.safetensors", "has 'layer5.weight', which 'resnet18' as configured does not have"),
    ):
        assert message in refusal(tiny(f"backbone={{{backbone}}}"))


def test_a_file_that_cannot_be_read_is_one_line(tiny, trained, tmp_path) -> None:
    checkpoint = list_checkpoints(trained.parent / "checkpoints")[0]
    content = bytearray(trained.read_bytes())
    content[-3] ^= 1
    damaged, short = tmp_path / "damaged.safetensors", tmp_path / "short.safetensors"
    damaged.write_bytes(content)
    short.write_bytes(content[:100])
    for path, message in (
        ("nowhere.safetensors", "backbone.weights: nowhere.safetensors: no such file"),
        (tmp_path, "is a directory; name a weight file"),
        (checkpoint, f"is a checkpoint; export its backbone first: ssl export backbone {checkpoint}"),
        (damaged, f"backbone.weights: {damaged}: is damaged: the tensor"),
        (short, "is damaged or no"),
    ):
        assert message in refusal(tiny(f"backbone.weights={path}"))


def test_a_run_is_resumed_and_its_backbone_loaded_without_the_file(tiny, trained, tmp_path, messages) -> None:
    kept = tmp_path / "kept.safetensors"
    shutil.copyfile(trained, kept)
    config = tiny(f"backbone.weights={kept}", "training.epochs=2")
    train(config, tmp_path / "whole")
    train(tiny(f"backbone.weights={kept}", "training.epochs=2", "training.max_steps=4"), tmp_path / "run")
    kept.unlink()
    messages.clear()
    train(config, tmp_path / "run", resume=True)
    assert not [line for line in messages if "backbone.weights" in line]
    assert newest(tmp_path / "run").step == 8
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    file = tmp_path / "run" / "backbone.safetensors"
    for path in (tmp_path / "run", file):
        assert_equal(load_trained(path).backbone.export_state()[0], load_file(file))
    assert isinstance(sslcli.load_backbone(file), Backbone)


def test_other_weights_on_resume_are_reported_and_not_read(tiny, trained) -> None:
    other = tiny("backbone.weights=nowhere.safetensors")
    [(rule, message)] = differences(other, tiny(f"backbone.weights={trained}").plain())
    assert rule == "warn"
    assert message.startswith("backbone.weights: ")
    build(other, fresh=False)


def test_building_a_backbone_reads_nothing() -> None:
    cls = load("backbones", "resnet18")
    cls.build(cls.Options.parse({"weights": "nowhere.safetensors", "width": 4}), 3, 32)
    cls.build(cls.Options.parse({"pretrained": True}), 3, 32)
