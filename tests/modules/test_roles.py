"""Each parameter's role, on torch's, torchvision's and custom layers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sslcli.modules import parameter_roles


class Gate(nn.Module):
    """A custom module with free parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3))
        self.bias = nn.Parameter(torch.zeros(3))
        self.position = nn.Parameter(torch.zeros(1, 5, 3))


class OwnRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class Declared(nn.Module):
    parameter_roles = {"matrix": "weight"}

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 3))
        self.inner = nn.Linear(3, 3)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.RMSNorm(4),
        OwnRMSNorm(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_all_parameters_of_a_norm_layer_are_norm(norm: nn.Module) -> None:
    roles = parameter_roles(norm)
    assert roles
    assert set(roles.values()) == {"norm"}


def test_a_resnet_has_weights_norms_and_one_bias() -> None:
    roles = parameter_roles(torchvision.models.resnet18())
    assert roles["conv1.weight"] == roles["layer1.0.conv1.weight"] == roles["fc.weight"] == "weight"
    assert roles["bn1.weight"] == roles["bn1.bias"] == roles["layer2.0.downsample.1.weight"] == "norm"
    assert [name for name, role in roles.items() if role == "bias"] == ["fc.bias"]
    assert "embedding" not in roles.values()


def test_tokens_and_positions_of_a_vit_are_embeddings() -> None:
    vit = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=2)
    roles = parameter_roles(vit)
    assert {name for name, role in roles.items() if role == "embedding"} == {"class_token", "encoder.pos_embedding"}
    attention = "encoder.layers.encoder_layer_0.self_attention."
    assert roles[attention + "in_proj_weight"] == "weight"
    assert roles[attention + "in_proj_bias"] == roles[attention + "out_proj.bias"] == "bias"
    assert roles["encoder.ln.weight"] == "norm"


def test_layer_scales_of_a_convnext_are_embeddings() -> None:
    setting = [torchvision.models.convnext.CNBlockConfig(8, None, 2)]
    roles = parameter_roles(torchvision.models.ConvNeXt(setting, num_classes=2))
    assert {name for name, role in roles.items() if role == "embedding"} == {
        f"features.1.{i}.layer_scale" for i in (0, 1)
    }
    assert roles["features.0.1.weight"] == roles["classifier.0.bias"] == "norm"


def test_tables_and_activation_coefficients_are_embeddings() -> None:
    assert parameter_roles(nn.Embedding(4, 3)) == {"weight": "embedding"}
    assert parameter_roles(nn.PReLU()) == {"weight": "embedding"}


def test_free_parameters_are_embeddings_unless_called_weight_or_bias() -> None:
    assert parameter_roles(Gate()) == {"weight": "weight", "bias": "bias", "position": "embedding"}


def test_recurrent_weights_and_biases_are_distinguished() -> None:
    roles = parameter_roles(nn.GRU(3, 4))
    assert roles["weight_ih_l0"] == "weight"
    assert roles["bias_hh_l0"] == "bias"


def test_a_module_s_declaration_takes_precedence_over_the_rules() -> None:
    model = nn.Sequential(Declared())
    assert parameter_roles(model) == {"0.matrix": "weight", "0.inner.weight": "weight", "0.inner.bias": "bias"}
    model[0].parameter_roles = {"matrix": "norm"}
    assert parameter_roles(model)["0.matrix"] == "norm"


def test_a_declaration_of_a_role_or_parameter_that_does_not_exist_is_refused() -> None:
    model = nn.Sequential(Declared())
    model[0].parameter_roles = {"matrix": "kernel"}
    with pytest.raises(ValueError, match=r"0 \(Declared\).*'kernel' is no role"):
        parameter_roles(model)
    model[0].parameter_roles = {"matrx": "norm"}
    with pytest.raises(ValueError, match=r"'matrx' is not one of its own parameters"):
        parameter_roles(model)


def test_the_parts_of_a_parametrized_weight_are_weights() -> None:
    roles = parameter_roles(nn.Sequential(weight_norm(nn.Linear(3, 4))))
    assert roles == {
        "0.bias": "bias",
        "0.parametrizations.weight.original0": "weight",
        "0.parametrizations.weight.original1": "weight",
    }


def test_every_parameter_has_one_role_in_torch_s_own_order() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Gate(), nn.Linear(3, 3))
    model[2].weight = model[0].weight  # shared: counted once
    model[0].bias.requires_grad_(False)
    assert list(parameter_roles(model)) == [name for name, _ in model.named_parameters()]
