"""torch's own optimizers as plugins: their options and kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sslcli.optimizers.adam import Adam, AdamOptions
from sslcli.optimizers.adamw import AdamW
from sslcli.optimizers.sgd import SGD, SGDOptions

PLUGINS = [(SGD, SGDOptions(lr=0.1)), (Adam, AdamOptions(lr=0.1)), (AdamW, AdamOptions(lr=0.1))]


def groups(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    weight = nn.Parameter(value.to(device, dtype))
    bias = nn.Parameter(torch.ones(4, device=device, dtype=dtype))
    return [
        {"params": [weight], "names": ["w"], "name": "main", "excluded": False, "weight_decay": 0.1, "lr": 0.5},
        {"params": [bias], "names": ["b"], "name": "main/excluded", "excluded": True, "weight_decay": 0.0, "lr": 0.5},
    ]


def train(optimizer: torch.optim.Optimizer, steps: int = 3) -> list[torch.Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.cos(parameter.detach())
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    ("plugin", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        (Adam, torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
        (AdamW, torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-6}),
    ],
)
def test_built_in_optimizers_are_torchs_with_their_options(plugin: Any, theirs: Any, options: dict[str, Any]) -> None:
    ours = plugin.build(groups(), plugin.Options.parse({"lr": 0.5, **options}))
    for a, b in zip(train(ours), train(theirs(groups(), lr=0.5, **options, foreach=False)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("plugin", "options"), PLUGINS)
def test_state_has_the_memory_format_of_its_parameter(plugin: type[SGD], options: SGDOptions) -> None:
    """The fused CPU kernels ignore strides: any other format would give silently wrong updates."""
    optimizer = plugin.build(groups(), options)
    assert optimizer.param_groups[0]["fused"]
    train(optimizer, 1)
    for parameter, state in optimizer.state.items():
        tensors = [value for value in state.values() if isinstance(value, torch.Tensor) and value.ndim]
        assert tensors
        assert all(value.stride() == parameter.stride() for value in tensors)


@pytest.mark.parametrize(("plugin", "options"), PLUGINS)
def test_multi_tensor_kernels_are_used_where_there_are_no_fused_ones(plugin: type[SGD], options: SGDOptions) -> None:
    for given in (groups("meta"), groups(dtype=torch.complex64)):
        (group, _) = plugin.build(given, options).param_groups
        assert not group["fused"]
        assert group["foreach"]


def test_nesterov_without_momentum_and_betas_out_of_range_are_refused() -> None:
    with pytest.raises(ValidationError, match="nesterov needs a momentum above 0"):
        SGDOptions(lr=0.1, momentum=0.0, nesterov=True)
    with pytest.raises(ValidationError, match="less than 1"):
        AdamOptions(lr=0.1, betas=(0.9, 1.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("plugin", "options"), PLUGINS)
def test_results_on_cuda_are_the_cpus(plugin: type[SGD], options: SGDOptions) -> None:
    optimizer = plugin.build(groups("cuda"), options)
    assert optimizer.param_groups[0]["fused"]
    for a, b in zip(train(optimizer), train(plugin.build(groups(), options)), strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("skipped", [1, 3])
def test_steps_skipped_by_the_grad_scaler_have_no_effect(skipped: int) -> None:
    """torch's fused SGD leaves its momentum buffers uninitialized if the first step is skipped."""
    torch.manual_seed(0)
    garbage = [torch.full((64, 64), torch.nan) for _ in range(64)]  # what an uninitialized buffer is likely to contain
    parameter = torch.nn.Parameter(torch.randn(64, 64))
    start, gradient = parameter.detach().clone(), torch.randn(64, 64)
    optimizer = SGD.build([{"params": [parameter]}], SGDOptions(lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    del garbage
    for step in range(skipped + 1):
        parameter.grad = gradient * scaler.get_scale() if step == skipped else torch.full_like(gradient, torch.inf)
        scaler.scale(torch.zeros(()))  # creates the scale, as the loop does
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(parameter.detach(), start - 0.1 * gradient)
