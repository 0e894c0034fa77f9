"""A run may start from weights that exist already: of a file, or published; only when it starts, and never again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sslcli
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.plugins import load
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.trained import load_trained
from sslcli.training.resume import differences
from sslcli.training.setup import build
from sslcli.training.train import train


def silent(text: str) -> None:
    """Tells nobody."""


@pytest.fixture
def trained(tiny, tmp_path) -> Path:
    """The backbone file of a tiny run."""
    train(tiny("training.epochs=1"), tmp_path / "first")
    return tmp_path / "first" / "backbone.safetensors"


def backbone_of(config, **settings) -> dict[str, torch.Tensor]:
    return build(config, **settings).method.encoder().export_state()[0]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]


def refusal(config) -> str:
    with pytest.raises(UserError) as caught:
        build(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_goes_on_from_the_backbone_of_another(tiny, trained) -> None:
    said: list[str] = []
    assert_equal(backbone_of(tiny(f"backbone.weights={trained}"), tell=said.append), load_file(trained))
    assert said == [f"backbone.weights: {trained}: the backbone starts from these weights"]


def test_the_momentum_encoder_starts_from_them_too(tiny, trained) -> None:
    state = build(tiny(f"backbone.weights={trained}", "method={name: byol}")).method.state_dict()
    copies = [key for key in state if key.endswith("conv1.weight") and "layer" not in key]
    assert len(copies) == 2
    expected = load_file(trained)["conv1.weight"]
    assert all(torch.equal(state[key], expected) for key in copies)


def test_the_heads_are_those_of_a_run_that_starts_from_scratch(tiny, trained) -> None:
    fresh, started = (build(config).method.state_dict() for config in (tiny(), tiny(f"backbone.weights={trained}")))
    heads = [key for key in fresh if not key.startswith("backbone.")]
    assert heads
    assert not [key for key in heads if not torch.equal(fresh[key], started[key])]


def test_a_classifier_in_the_file_is_left_out_and_told(tiny, trained, tmp_path) -> None:
    state = load_file(trained)
    save_file({**state, "fc.weight": torch.ones(10, 32), "fc.bias": torch.ones(10)}, tmp_path / "theirs.safetensors")
    said: list[str] = []
    assert_equal(backbone_of(tiny(f"backbone.weights={tmp_path}/theirs.safetensors"), tell=said.append), state)
    assert said[0].endswith("starts from these weights, without the classifier (fc.bias, fc.weight)")


def test_counters_that_older_files_lack_are_not_missed(tiny, trained, tmp_path) -> None:
    state = {key: value for key, value in load_file(trained).items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    found = backbone_of(tiny(f"backbone.weights={tmp_path}/old.safetensors"))
    assert torch.equal(found["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])


def test_the_path_is_relative_to_where_one_is_and_knows_the_home_directory(
    tiny, trained, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(trained.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("backbone.safetensors", "~/first/backbone.safetensors"):
        assert_equal(backbone_of(tiny(f"backbone.weights={name}")), load_file(trained))


def test_weights_that_do_not_fit_are_refused_with_the_first_key_that_differs(tiny, trained, tmp_path) -> None:
    assert "'conv1.weight' is (4, 3, 3, 3) there and (8, 3, 3, 3) in 'resnet18' as configured" in refusal(
        tiny(f"backbone.weights={trained}", "backbone.width=8")
    )
    assert "has no 'cls_token', which 'vit_tiny' needs" in refusal(
        tiny(f"backbone={{name: vit_tiny, patch_size: 8, depth: 1, weights: {trained}}}")
    )
    state = load_file(trained)
    save_file({**state, "layer5.weight": torch.ones(1)}, tmp_path / "more.safetensors")
    assert "has 'layer5.weight', which 'resnet18' as configured does not have" in refusal(
        tiny(f"backbone.weights={tmp_path}/more.safetensors")
    )


def test_a_file_that_cannot_be_read_is_one_line(tiny, trained, tmp_path) -> None:
    assert (
        refusal(tiny("backbone.weights=nowhere.safetensors")) == "backbone.weights: nowhere.safetensors: no such file"
    )
    assert "is a directory; name a safetensors file" in refusal(tiny(f"backbone.weights={tmp_path}"))
    checkpoint = list_checkpoints(trained.parent / "checkpoints")[0]
    assert f"is a checkpoint; make a file of its backbone first: ssl export backbone {checkpoint}" in refusal(
        tiny(f"backbone.weights={checkpoint}")
    )
    content = bytearray(trained.read_bytes())
    content[-3] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    assert f"backbone.weights: {damaged}: is damaged: the tensor" in refusal(tiny(f"backbone.weights={damaged}"))
    damaged.write_bytes(content[:100])
    assert "is damaged or no safetensors file" in refusal(tiny(f"backbone.weights={damaged}"))


def test_a_run_is_resumed_and_its_backbone_loaded_when_the_file_is_gone(tiny, trained, tmp_path) -> None:
    kept = tmp_path / "kept.safetensors"
    shutil.copyfile(trained, kept)
    config = tiny(f"backbone.weights={kept}", "training.epochs=2")
    train(config, tmp_path / "whole")
    train(tiny(f"backbone.weights={kept}", "training.epochs=2", "training.max_steps=4"), tmp_path / "run")
    kept.unlink()
    said: list[str] = []
    train(config, tmp_path / "run", resume=True, tell=said.append)
    assert not [line for line in said if "backbone.weights" in line]
    whole, run = (read_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[0]) for name in ("whole", "run"))
    assert_equal(whole.tensors, run.tensors)
    for place in (tmp_path / "run", tmp_path / "run" / "backbone.safetensors"):
        assert_equal(load_trained(place).backbone.export_state()[0], load_file(tmp_path / "run/backbone.safetensors"))
    assert isinstance(sslcli.load_backbone(tmp_path / "run" / "backbone.safetensors"), Backbone)


def test_other_weights_at_a_resumption_are_told_and_not_read(tiny, trained) -> None:
    stored = tiny(f"backbone.weights={trained}").plain()
    (found,) = differences(tiny("backbone.weights=other.safetensors"), stored)
    assert found[0] == "warn"
    assert found[1].startswith("backbone.weights: ")


def test_building_a_session_that_is_resumed_reads_nothing(tiny) -> None:
    build(tiny("backbone.weights=nowhere.safetensors"), fresh=False)


def test_building_a_backbone_reads_nothing() -> None:
    cls = load("backbones", "resnet18")
    cls.build(cls.Options.parse({"weights": "nowhere.safetensors", "width": 4}), 3, 32)
    cls.build(cls.Options.parse({"pretrained": True}), 3, 32)
