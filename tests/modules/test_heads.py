"""MLP heads: their layers in order, and what a missing β means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslcli.modules.heads import ProjectorOptions, build_head, mlp


def kinds(head: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in head]


def test_batch_norm_follows_every_layer_of_simclr_s_head() -> None:
    head = mlp(8, 6, 4, 3, last_norm="no_bias")
    assert kinds(head) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)] == [(6, 8), (6, 6), (4, 6)]


def test_a_layer_before_a_batch_norm_has_no_bias() -> None:
    head = mlp(8, 6, 4, 2, last_norm="full")
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))


def test_without_norm_the_hidden_layers_have_a_bias_and_the_last_one_as_asked() -> None:
    for last_bias in (True, False):
        head = mlp(8, 6, 4, 2, norm="none", last_bias=last_bias)
        assert kinds(head) == ["Linear", "ReLU", "Linear"]
        assert head[0].bias is not None
        assert (head[2].bias is not None) == last_bias


@pytest.mark.parametrize(
    ("last_norm", "names"),
    [("full", {"weight", "bias"}), ("no_bias", {"weight"}), ("no_affine", set())],
)
def test_the_last_batch_norm_has_the_parameters_asked_for(last_norm: str, names: set[str]) -> None:
    last = mlp(8, 6, 4, 2, last_norm=last_norm)[-1]
    assert {name for name, _ in last.named_parameters()} == names


def test_a_batch_norm_without_bias_standardizes_and_trains() -> None:
    torch.manual_seed(0)
    head = mlp(8, 6, 4, 2, last_norm="no_bias")
    z = head(torch.randn(64, 8))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(dim=0, unbiased=False), torch.ones(4), rtol=0, atol=1e-3)
    (z**3).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    head.eval()(torch.randn(2, 8))


def test_conversion_to_sync_batch_norm_keeps_the_missing_bias() -> None:
    last = nn.SyncBatchNorm.convert_sync_batchnorm(mlp(8, 6, 4, 2, last_norm="no_bias"))[-1]
    assert isinstance(last, nn.SyncBatchNorm)
    assert [name for name, _ in last.named_parameters()] == ["weight"]


def test_one_layer_is_linear_and_none_is_refused() -> None:
    assert kinds(mlp(8, 6, 4, 1)) == ["Linear"]
    with pytest.raises(ValueError, match="at least one layer"):
        mlp(8, 6, 4, 0)


def test_a_head_is_built_from_its_options_and_what_is_fixed() -> None:
    options = ProjectorOptions(output_dim=4)
    assert options.plain() == {"layers": 2, "hidden_dim": None, "output_dim": 4, "norm": "batch", "last_bias": False}
    head = build_head(options, 8, last_norm="full")
    assert kinds(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)] == [(8, 8), (4, 8)]
    assert kinds(build_head(options, 8, layers=3, norm="none")) == ["Linear", "ReLU"] * 2 + ["Linear"]
