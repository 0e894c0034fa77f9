"""DINO's head: what it computes, its weight normalization, its initialization, and its copies and files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sslcli.modules.dino_head import DINOHead, WeightNormLinear
from sslcli.modules.roles import parameter_roles


def build(seed: int = 0, **changes: object) -> DINOHead:
    torch.manual_seed(seed)
    return DINOHead(**{"input_dim": 6, "hidden_dim": 16, "bottleneck_dim": 5, "prototypes": 12, **changes})  # type: ignore[arg-type]


def test_dino_head_is_three_layers_with_gelu_and_unit_vectors_before_the_prototypes() -> None:
    head, x = build(), torch.randn(4, 6)
    assert [type(part) for part in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    z = head.embed(x)
    torch.testing.assert_close(z, head.mlp(x) / head.mlp(x).norm(dim=1, keepdim=True))
    rows = head.last_layer.weight / head.last_layer.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(x), z @ rows.T)


def test_dino_head_logits_are_cosines_whatever_the_length_of_the_weights() -> None:
    head, x = build(), torch.randn(4, 6)
    before = head(x)
    assert before.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.last_layer.weight.mul_(torch.rand(12, 1) + 0.5)
    torch.testing.assert_close(head(x), before)


def test_dino_weight_norm_is_torchs_with_gain_one() -> None:
    own = WeightNormLinear(5, 7, fixed_gain=False).double()
    theirs = weight_norm(nn.Linear(5, 7, bias=False).double())
    with torch.no_grad():
        theirs.parametrizations.weight.original0.fill_(1)
        theirs.parametrizations.weight.original1.copy_(own.weight)
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(own(x), theirs(x))
    own(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(own.weight.grad, theirs.parametrizations.weight.original1.grad)
    torch.testing.assert_close(own.gain.grad, theirs.parametrizations.weight.original0.grad)


def test_dino_gain_is_learned_only_without_norm_last_layer() -> None:
    free, fixed = build(norm_last_layer=False), build()
    assert torch.equal(free.last_layer.gain, torch.ones(12, 1))
    assert fixed.last_layer.gain is None
    x = torch.randn(4, 6)
    assert torch.equal(free(x), fixed(x))
    free(x).sum().backward()
    assert free.last_layer.gain.grad.abs().sum() > 0
    with torch.no_grad():
        free.last_layer.gain.fill_(3)
    torch.testing.assert_close(free(x), 3 * fixed(x))


def test_dino_head_is_initialized_with_a_truncated_normal_and_no_bias() -> None:
    head = build(input_dim=128, hidden_dim=256, bottleneck_dim=64)
    for part in head.mlp:
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert part.weight.mean().abs() < 1e-3
            assert torch.equal(part.bias, torch.zeros_like(part.bias))


def test_dino_head_with_batch_norm_has_it_after_each_hidden_layer() -> None:
    head = build(norm="batch")
    kinds = [nn.Linear, nn.BatchNorm1d, nn.GELU]
    assert [type(part) for part in head.mlp] == [*kinds, *kinds, nn.Linear]
    assert [part.bias is not None for part in head.mlp if isinstance(part, nn.Linear)] == [False, False, True]


def test_dino_head_of_one_layer_is_linear() -> None:
    assert [type(part) for part in build(layers=1).mlp] == [nn.Linear]
    with pytest.raises(ValueError, match="at least one layer, not 0"):
        build(layers=0)


def test_dino_head_gives_every_weight_its_role() -> None:
    roles = parameter_roles(build(norm_last_layer=False))
    assert roles["mlp.0.weight"] == roles["last_layer.weight"] == roles["last_layer.gain"] == "weight"
    assert roles["mlp.0.bias"] == "bias"
    assert parameter_roles(build())["last_layer.weight"] == "weight"


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_dino_head_is_bitwise_the_same_after_a_copy_and_a_file(norm_last_layer: bool, tmp_path: Path) -> None:
    head, x = build(norm_last_layer=norm_last_layer), torch.randn(4, 6)
    head(x).sum().backward()  # a copy must be possible after a backward too
    twin = copy.deepcopy(head)
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    fresh = build(seed=1, norm_last_layer=norm_last_layer)
    fresh.load_state_dict(load_file(tmp_path / "head.safetensors"), strict=True)
    assert torch.equal(twin(x), head(x))
    assert torch.equal(fresh(x), head(x))
    with torch.no_grad():
        head.last_layer.weight.add_(torch.randn(12, 5))
    assert not torch.equal(twin(x), head(x))


def test_dino_logits_are_not_rounded_by_autocast() -> None:
    """Cosines are divided by temperatures such as 0.04."""
    layer, z = WeightNormLinear(64, 32), torch.nn.functional.normalize(torch.randn(8, 64), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(z)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, layer(z))


def test_dino_head_of_zeros_gives_zeros_and_finite_gradients() -> None:
    head = build()
    with torch.no_grad():
        head.last_layer.weight.zero_()
    x = torch.zeros(2, 6, requires_grad=True)
    out = head(x)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 12))
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
