"""Any `nn.Module` as the backbone of a run: a copy is trained, resumed exactly, and loaded into a module like it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from api_helpers import TINY, Arrays, Net, states_equal, tiny_run
from torch import nn

import sslcli
from sslcli.backbones.wrapped import wrap
from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options


def test_a_copy_of_the_module_is_trained_and_the_module_is_unchanged(tmp_path) -> None:
    module = Net().train()
    module.conv.eval()
    before, modes = copy.deepcopy(module), [part.training for part in module.modules()]
    run = tiny_run(tmp_path / "run", backbone=module)
    assert states_equal(module, before)
    assert [part.training for part in module.modules()] == modes
    trained = run.backbone()
    assert type(trained) is Net
    assert not trained.training
    assert not torch.equal(trained.conv.weight, before.conv.weight)
    assert trained.norm.num_batches_tracked > 0
    assert (run.config["backbone"]["name"], run.card.feature_dim) == ("python:Net", 6)


def test_training_starts_from_the_weights_of_the_module(tmp_path) -> None:
    module = Net()
    run = tiny_run(tmp_path / "run", backbone=module, optimizer={"name": "sgd", "lr": 1e-12})
    assert torch.allclose(run.backbone().conv.weight, module.conv.weight, atol=1e-9)


def test_finding_the_feature_dimension_has_no_side_effects() -> None:
    module = nn.Sequential(Net(dim=5), nn.Dropout())
    before, generator = copy.deepcopy(module), torch.random.get_rng_state()
    backbone = wrap(module, "python:Sequential").build(Options(), 3, 16)
    assert backbone.spec.feature_dim == 5
    assert states_equal(module, before)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert states_equal(backbone.network, before)
    assert backbone(torch.rand(4, 3, 16, 16)).pooled.shape == (4, 5)


def test_a_run_resumed_with_the_same_module_is_bitwise_identical(tmp_path) -> None:
    module, data = Net(), Arrays(40)
    whole = tiny_run(tmp_path / "whole", backbone=module, data=data)
    tiny_run(tmp_path / "parts", backbone=module, data=data, training={"max_steps": 3})
    resumed = tiny_run(tmp_path / "parts", backbone=module, data=data, resume=True)
    assert resumed.step == 10
    assert states_equal(resumed.backbone(), whole.backbone())
    assert [record["loss"] for record in resumed.metrics] == [record["loss"] for record in whole.metrics]


def test_a_run_is_not_resumed_with_another_module(tmp_path) -> None:
    tiny_run(tmp_path / "run", training={"max_steps": 1})
    with pytest.raises(UserError, match="does not fit the method"):
        tiny_run(tmp_path / "run", backbone=Net(dim=7), resume=True)
    with pytest.raises(UserError, match=r"backbone.name: 'python:Net' in the run, 'python:Sequential' now"):
        tiny_run(tmp_path / "run", backbone=nn.Sequential(Net()), resume=True)


def test_weights_of_a_module_are_loaded_into_a_module_like_it(tmp_path) -> None:
    run = tiny_run(tmp_path / "run")
    for target in (run.path, run.path / "backbone.safetensors", run):
        with pytest.raises(UserError, match=r"load it with sslcli.load_backbone\(path, into=module\)") as caught:
            sslcli.load_backbone(run.path)
        assert "\n" not in str(caught.value)
        fresh = Net()
        assert sslcli.load_backbone(target, into=fresh) is fresh
        assert states_equal(fresh, run.backbone())
        assert not fresh.training
    with pytest.raises(UserError, match="its weights do not fit"):
        sslcli.load_backbone(run.path, into=Net(dim=7))


def test_an_opened_run_needs_its_module_to_evaluate(tmp_path) -> None:
    data, test = Arrays(40), Arrays(20, seed=1)
    run = tiny_run(tmp_path / "run", data=data, labeled=(data, test))
    opened = sslcli.Run(run.path, backbone=Net(), data=data, labeled=(data, test))
    assert opened.evaluate("knn", k=[3]).metrics == run.evaluate("knn", k=[3]).metrics
    assert states_equal(opened.backbone(), run.backbone())
    with pytest.raises(UserError, match=r"pass it again: sslcli.Run\(path, backbone=…\)"):
        sslcli.Run(run.path).evaluate("knn")
    with pytest.raises(UserError, match=r"backbone: should be .* any nn.Module; not an object of type int"):
        sslcli.Run(run.path, backbone=3)


def test_the_printed_code_of_an_exported_module_loads_it(tmp_path) -> None:
    run = tiny_run(tmp_path / "run")
    exported = run.export("backbone", tmp_path / "net.safetensors")
    names: dict[str, Any] = {"model": Net()}
    exec(exported.how_to_load, names)
    assert states_equal(names["model"], run.backbone())


def test_a_built_in_backbone_given_as_an_object_keeps_its_features(tmp_path) -> None:
    options = {"name": "resnet18", "width": 4, "stem": "small"}
    first = sslcli.train(**{**TINY, "backbone": options, "data": Arrays(40)}, max_steps=1, output=tmp_path / "first")
    run = tiny_run(tmp_path / "run", backbone=first.backbone(), training={"max_steps": 1})
    assert run.card.feature_dim == 32
    assert run.backbone()(torch.rand(2, 3, 16, 16)).pooled.shape == (2, 32)


class Tuple(Net):
    def forward(self, x):
        return super().forward(x), None


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Net, r"backbone: give an instance, not the class: Net\(…\)"),
        (nn.Conv2d(3, 4, 3), r"returned \(2, 4, 14, 14\); it should be .* add a pooling"),
        (Tuple(), r"returned a tuple; it should be a tensor \(N, D\)"),
        (
            nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1))),
            "for two images; the first dimension must be the batch",
        ),
        (nn.Conv2d(1, 4, 3), r"cannot take images \(2, 3, 16, 16\): RuntimeError: Given groups=1"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "has uninitialized lazy layers: call it once"),
    ],
)
def test_a_module_that_is_not_a_backbone_is_refused_in_one_line(module, message, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny_run(tmp_path / "run", backbone=module)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
