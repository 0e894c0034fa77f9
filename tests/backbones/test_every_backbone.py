"""Every built-in backbone at its full size, providers' included: features as its spec says, export and import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from small_options import quick
from torch import nn
from torchvision.models import regnet

from sslcli.contracts.backbone import Backbone, BackboneOptions, BackboneProvider
from sslcli.contracts.errors import UserError
from sslcli.plugins import find, load, load_found


def names() -> list[str]:
    found = []
    for plugin in find("backbones"):
        if plugin.package == "sslcli":
            cls: Any = load_found(plugin)
            many = cls.names() if issubclass(cls, BackboneProvider) else None
            found += [plugin.name] if many is None else [f"{plugin.name}/{name}" for name in many]
    return found


NAMES = names()
#: One of each family, the smallest.
REPRESENTATIVES = [
    "resnet18", "ws_resnet18", "cifar_resnet20", "vit_tiny", "torchvision/alexnet", "torchvision/convnext_tiny",
    "torchvision/densenet121", "torchvision/efficientnet_b0", "torchvision/googlenet", "torchvision/inception_v3",
    "torchvision/maxvit_t", "torchvision/mnasnet0_5", "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small",
    "torchvision/regnet_y_400mf", "torchvision/resnet18", "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1", "torchvision/swin_t", "torchvision/vgg11_bn", "torchvision/vit_b_32",
]  # fmt: skip
#: Of those, what the quick tests take: our own, and torchvision's that end in another way each (a pooling layer, a
#: function, a convolution, several linear layers, tokens, an auxiliary classifier).
QUICK = [
    "resnet18", "ws_resnet18", "cifar_resnet20", "vit_tiny", "torchvision/alexnet", "torchvision/googlenet",
    "torchvision/resnet18", "torchvision/shufflenet_v2_x0_5", "torchvision/squeezenet1_1", "torchvision/vit_b_32",
]  # fmt: skip
#: Of those, what takes seconds to fill or to run.
HEAVY = {
    f"torchvision/{name}"
    for name in ("alexnet", "inception_v3", "googlenet", "convnext_tiny", "maxvit_t", "swin_t", "vgg11_bn", "vit_b_32")
}
#: The smallest image of those that say it only when they get one.
SIZES = {"torchvision/maxvit_t": 224, "torchvision/inception_v3": 75, "torchvision/alexnet": 63}


def size_of(name: str) -> int:
    """The smallest side that a backbone takes, at least 32."""
    if name.startswith("torchvision/vit_"):
        patch = int(name.rpartition("_")[2])
        return patch * -(-32 // patch)
    return SIZES.get(name, 32)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made in here have shapes and no weights. (RegNet computes its widths with tensors: those are real.)"""
    original = regnet.BlockParams.from_init_params.__func__

    def on_cpu(cls: Any, *arguments: Any, **options: Any) -> Any:
        with torch.device("cpu"):
            return original(cls, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(regnet.BlockParams, "from_init_params", classmethod(on_cpu))
        yield


each = pytest.mark.parametrize("name", quick(NAMES, *QUICK))


#: For the lines that an export prints: without and with an auxiliary classifier, and a ViT.
LINES = ["torchvision/squeezenet1_1", "torchvision/googlenet", "torchvision/vit_b_32"]


def build(name: str, channels: int = 3, **options: Any) -> Backbone:
    cls: type[Backbone] = load("backbones", name)
    return cls.build(cls.Options.parse(options), channels, size_of(name))


@contextmanager
def without_initialization() -> Iterator[None]:
    """Weights made in here are not initialized: they are loaded later."""
    with pytest.MonkeyPatch.context() as patch:
        for function in [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]:
            patch.setattr(nn.init, function, lambda tensor, *arguments, **options: tensor)
        yield


@pytest.mark.parametrize("name", quick(NAMES, *(name for name in QUICK if name not in HEAVY)))
def test_a_batch_passes_through_and_what_is_exported_loads(name: str) -> None:
    torch.manual_seed(0)
    backbone, size = build(name).eval(), size_of(name)
    assert backbone.spec.minimum_size <= size
    x = torch.randn(2, 3, size, size)
    with torch.no_grad(), without_initialization():
        expected = backbone(x).pooled
    assert expected.shape == (2, backbone.spec.feature_dim)
    assert torch.isfinite(expected).all()
    state, lines = backbone.export_state()
    again = build(name).eval()
    again.import_state(dict(state))
    with torch.no_grad():
        assert torch.equal(again(x).pooled, expected)
        again.load_state_dict(dict(backbone.state_dict()), strict=True)
        if lines:
            scope: dict[str, Any] = {"state": dict(state)}
            exec(lines, scope)
            assert torch.equal(scope["model"].eval()(x), expected)


def test_all_of_torchvision_s_are_among_them() -> None:
    assert set(REPRESENTATIVES) <= set(NAMES)
    assert len(NAMES) > 80


@each
def test_every_one_is_built_without_a_classifier(name: str) -> None:
    with without_memory():
        backbone = build(name)
    assert issubclass(load("backbones", name).Options, BackboneOptions)  # so that it can start from a file
    assert backbone.spec.feature_dim > 0
    assert not [key for key, parameter in backbone.named_parameters() if 1000 in parameter.shape]


@each
def test_the_features_have_the_dimension_of_the_spec(name: str) -> None:
    with without_memory():
        backbone, size = build(name), size_of(name)
        found = backbone.train()(torch.empty(2, 3, size, size))
    assert found.pooled.shape == (2, backbone.spec.feature_dim)
    assert found.pooled.is_meta


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", quick([*sorted(HEAVY), "torchvision/squeezenet1_1"], *LINES))
def test_the_lines_build_a_model_of_the_exported_names_and_shapes(name: str, channels: int) -> None:
    with without_memory():
        backbone = build(name, channels)
        state, lines = backbone.export_state()
        scope: dict[str, Any] = {"state": state}
        exec(lines, scope)
        found = scope["model"](torch.empty(2, channels, size_of(name), size_of(name)))
    assert found.shape == (2, backbone.spec.feature_dim)
    built = scope["model"].state_dict()
    assert {key: value.shape for key, value in built.items()} == {key: value.shape for key, value in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_gradients_reach_every_weight_in_training_mode(name: str) -> None:
    torch.manual_seed(0)
    backbone = build(name, **({"zero_init_residual": False} if "resnet" in name else {}))
    backbone.train()(torch.randn(4, 3, size_of(name), size_of(name))).pooled.square().sum().backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", quick(REPRESENTATIVES, *QUICK))
def test_the_first_convolution_has_the_channels_asked_for(name: str) -> None:
    for channels in (1, 5):
        with without_memory():
            backbone = build(name, channels)
        first = next(part for part in backbone.modules() if isinstance(part, nn.Conv2d))
        assert (first.in_channels, backbone.spec.channels) == (channels, channels)


@pytest.mark.parametrize("name", quick(REPRESENTATIVES, *QUICK))
def test_views_below_the_minimum_are_rejected_with_the_size_to_set(name: str) -> None:
    with without_memory():
        cls: type[Backbone] = load("backbones", name)
        takes_small_ones = name.startswith("cifar") or "stem" in cls.Options.model_fields
        with pytest.raises(UserError, match=r"views") as caught:
            cls.build(cls.Options(), 3, 3 if takes_small_ones else size_of(name) - 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["torchvision/vgg11_bn", "torchvision/mobilenet_v3_small", "torchvision/googlenet"])
def test_no_layer_of_the_classifier_is_left(name: str) -> None:
    with without_memory():
        backbone = build(name)
    assert not any(isinstance(part, nn.Linear | nn.Dropout) for part in backbone.modules())
