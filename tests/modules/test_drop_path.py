"""Drop-path: whole samples are skipped, the mean stays, and rates can be changed from outside."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from sslcli.modules.drop_path import DropPath, drop_path_rates, grow_drop_path, set_drop_path


class Block(nn.Module):
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.one, self.two = DropPath(rate), DropPath(rate)


def test_drop_path_skips_whole_samples_and_scales_the_others() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(4000, 3, 2))
    kept = out[:, 0, 0] != 0
    assert torch.equal(out, torch.where(kept[:, None, None], 1 / 0.75, 0.0).expand_as(out))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_drop_path_does_nothing_and_draws_nothing_in_evaluation_or_with_rate_zero() -> None:
    x = torch.randn(5, 3)
    state = torch.get_rng_state()
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_drop_path_repeats_with_torchs_generator() -> None:
    layer, x = DropPath(0.5), torch.randn(64, 3)
    torch.manual_seed(3)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_drop_path_keeps_the_type(dtype: torch.dtype) -> None:
    assert DropPath(0.5)(torch.ones(4, 2, dtype=dtype)).dtype == dtype


def test_set_drop_path_reaches_every_layer_and_a_copy_keeps_its_own() -> None:
    student = nn.Sequential(Block(0.1), nn.Sequential(Block(0.2)))
    teacher = copy.deepcopy(student)
    set_drop_path(teacher, 0.0)
    assert drop_path_rates(teacher) == [0, 0, 0, 0]
    assert drop_path_rates(student) == [0.1, 0.1, 0.2, 0.2]


def test_grow_drop_path_goes_linearly_from_zero_to_the_rate_by_blocks() -> None:
    network = nn.Sequential(*[Block() for _ in range(5)])
    grow_drop_path(network, 0.2)
    assert drop_path_rates(network) == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2])
    assert grow_drop_path(network, 0.2) == 5
    assert grow_drop_path(nn.Linear(2, 2), 0.2) == 0  # nothing there to set


def test_torchvisions_layers_grow_too_and_timms_are_left_alone() -> None:
    network = torchvision.models.convnext_tiny()
    assert grow_drop_path(network, 0.34) == 18
    assert drop_path_rates(network) == pytest.approx([0.02 * i for i in range(18)])
    timms = nn.Sequential(nn.Sequential(pytest.importorskip("timm.layers").DropPath(0.1)))
    assert grow_drop_path(timms, 0.3) == 0
    assert drop_path_rates(timms) == [0.1]


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_rates_outside_of_zero_to_one_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        DropPath(rate)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        set_drop_path(Block(), rate)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        grow_drop_path(Block(), rate)


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [("torchvision.ops", "StochasticDepth", (0.9, "row")), ("timm.layers", "DropPath", (0.9,))],
)
def test_set_drop_path_switches_other_libraries_layers_off_too(module: str, name: str, arguments: tuple) -> None:
    net = nn.Sequential(nn.Identity(), getattr(pytest.importorskip(module), name)(*arguments))
    x = torch.ones(64, 3)
    assert not torch.equal(net(x), x)
    set_drop_path(net, 0.0)
    assert torch.equal(net(x), x)
