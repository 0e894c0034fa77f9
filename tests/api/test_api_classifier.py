"""A module that ends in a classifier: cut where its place is known, else refused, or kept on request."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torchvision
from api_helpers import Net, states_equal, tiny_run
from torch import nn

import sslcli
from sslcli.backbones.wrapped import WrappedOptions, wrap
from sslcli.contracts.errors import UserError
from sslcli.runs.backbone_file import build_backbone


class Classifying(Net):
    """`Net` and a linear layer behind it, as most tutorials have it."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__(dim=6)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(super().forward(x).flatten(1))


def built(module: nn.Module, size: int = 32, **options: Any) -> Any:
    return wrap(module, "python:Mine").build(WrappedOptions.parse(options), 3, size)


def small_resnet(classes: int = 1000) -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=classes)


def test_torchvisions_classifier_is_left_out_of_the_copy_and_told_once(tmp_path, capsys) -> None:
    module = small_resnet()
    run = tiny_run(tmp_path / "run", backbone=module, training={"max_steps": 2})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("backbone")]
    assert lines == [
        "backbone: python:ResNet ends in a classifier, which is left out (model.fc = torch.nn.Identity()): 512 "
        'features; backbone={"name": module, "classifier": "keep"} takes it as it is'
    ]
    assert isinstance(module.fc, nn.Linear)  # the caller's own
    assert run.card.feature_dim == 512
    assert isinstance(run.backbone().fc, nn.Identity)
    assert run.config["backbone"]["classifier"] == "cut"
    exported = run.export("backbone", tmp_path / "net.safetensors")
    names: dict[str, Any] = {"model": small_resnet()}
    exec(exported.how_to_load, names)
    assert states_equal(names["model"], run.backbone())
    into = small_resnet()
    assert states_equal(sslcli.load_backbone(run.path, into=into), run.backbone())
    assert isinstance(into.fc, nn.Identity)  # it was given to be filled


def test_a_kept_classifier_is_trained(tmp_path, capsys) -> None:
    run = tiny_run(
        tmp_path / "run", backbone={"name": small_resnet(20), "classifier": "keep"}, training={"max_steps": 1}
    )
    assert "backbone: " not in capsys.readouterr().err
    assert run.card.feature_dim == 20
    assert isinstance(sslcli.load_backbone(run.path, into=small_resnet(20)).fc, nn.Linear)


@pytest.mark.parametrize(
    ("name", "dim", "size"),
    [
        ("mobilenet_v3_small", 576, 32),
        ("squeezenet1_1", 512, 64),
        ("alexnet", 256, 64),
        ("shufflenet_v2_x0_5", 1024, 32),
    ],
)
def test_other_models_of_torchvision_are_cut_too(name, dim, size) -> None:
    backbone = built(torchvision.models.get_model(name, weights=None), size)
    assert backbone.spec.feature_dim == dim
    assert backbone(torch.rand(2, 3, size, size)).pooled.shape == (2, dim)


def test_the_auxiliary_classifiers_of_googlenet_are_cut_too() -> None:
    backbone = built(torchvision.models.googlenet(weights=None, init_weights=False), 64).train()
    assert backbone(torch.rand(2, 3, 64, 64)).pooled.shape == (2, 1024)


def test_timms_models_are_cut_and_those_without_a_classifier_stay_as_they_are(caplog) -> None:
    timm = pytest.importorskip("timm")
    caplog.set_level(logging.INFO, logger="sslcli")
    assert built(timm.create_model("resnet10t")).spec.feature_dim == 512
    assert "(model.reset_classifier(0)): 512 features" in caplog.text
    caplog.clear()
    assert built(timm.create_model("resnet10t", num_classes=0)).cut == []
    cut = small_resnet()
    cut.fc = nn.Identity()
    assert built(cut).cut == []
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (
            Classifying(3),
            r"module\.fc \(6 → 3\), which looks like a classifier: write module\.fc = torch\.nn\.Identity",
        ),
        (Classifying(1000), r"module\.fc \(6 → 1000\), which looks like a classifier"),
        (nn.Sequential(small_resnet(50)), r"module\[0\]\.fc \(512 → 50\), which looks"),
        (nn.Sequential(Net(6), nn.Flatten(), nn.Linear(6, 10)), r"module\[2\] \(6 → 10\), which looks"),
    ],
)
def test_what_looks_like_a_classifier_is_refused_with_the_line_to_write(module, line, tmp_path) -> None:
    with pytest.raises(
        UserError, match=rf"^sslcli\.train: backbone: python:\w+ ends in the linear layer {line}"
    ) as caught:
        tiny_run(tmp_path / "run", backbone=module)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert built(module, classifier="keep").spec.feature_dim in (3, 10, 50, 1000)


def test_a_last_layer_with_an_output_for_each_class_of_the_data_is_refused(tmp_path) -> None:
    module = nn.Sequential(Net(6), nn.Flatten(), nn.Linear(6, 3))  # `Arrays` has three classes
    with pytest.raises(UserError, match=r"backbone: .* module\[2\] \(6 → 3\), which looks like a classifier"):
        tiny_run(tmp_path / "run", backbone=module)
    kept = tiny_run(tmp_path / "run", backbone={"name": module, "classifier": "keep"}, training={"max_steps": 1})
    assert kept.card.feature_dim == 3


def test_another_last_linear_layer_is_told(caplog) -> None:
    caplog.set_level(logging.INFO, logger="sslcli")
    assert built(nn.Sequential(Net(6), nn.Flatten(), nn.Linear(6, 12))).spec.feature_dim == 12
    assert caplog.messages == [
        "backbone: python:Mine ends in the linear layer module[2] (6 → 12); its outputs are taken as the features"
    ]
    assert built(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))).spec.feature_dim == 10  # there is nothing before it


def test_a_run_of_a_version_without_the_option_keeps_its_classifier(tmp_path) -> None:
    old = tiny_run(
        tmp_path / "run", backbone={"name": small_resnet(20), "classifier": "keep"}, training={"max_steps": 1}
    )
    card = old.card
    del card.backbone["classifier"]
    cls = wrap(small_resnet(20), "python:ResNet")
    with sslcli.plugins.registered({("backbones", "ResNet"): cls}):
        assert build_backbone(tmp_path, card, lambda _: None).spec.feature_dim == 20
    assert WrappedOptions().as_in_run({"name": "python:ResNet"}).classifier == "keep"
