"""What holds for every built-in optimizer beyond its contract: late starts, skipped steps, changing decay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_options import Value
from torch import nn

from sslcli.contracts.optimizer import OptimizerPlugin
from sslcli.optimizers.groups import set_rates
from sslcli.plugins import find, load

NAMES = sorted(plugin.name for plugin in find("optimizers") if plugin.package == "sslcli")
pytestmark = pytest.mark.parametrize("name", NAMES)


def build(
    name: str, device: str = "cpu", weight_decay: float = 0.1, tensors: list[nn.Parameter] | None = None
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Three tensors that decay and two that are excluded, and their optimizer."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (5, 4), (3, 3), (6,), (4,)]
    if tensors is None:
        tensors = [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    cls: type[OptimizerPlugin] = load("optimizers", f"sslcli:{name}")
    options = cls.Options.parse({"lr": 0.1, "weight_decay": weight_decay})
    groups: list[dict[str, Any]] = [
        {"params": tensors[:3], "excluded": False, "lr": 0.1, "weight_decay": weight_decay},
        {"params": tensors[3:], "excluded": True, "lr": 0.1, "weight_decay": 0.0},
    ]
    return tensors, cls.build(groups, options)


def give_gradients(parameters: list[nn.Parameter], step: int, without: tuple[int, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        parameter.grad = None if index in without else gradient


def test_a_parameter_that_was_frozen_at_first_starts_like_a_new_one(name: str) -> None:
    """SwAV's frozen prototypes and DINO's frozen last layer need this."""
    parameters, optimizer = build(name)
    fresh, other = build(name)
    for step in range(2):
        give_gradients(parameters, step, without=(1,))
        optimizer.step()
    for given in (parameters, fresh):
        give_gradients(given, 2)
    optimizer.step()
    other.step()
    torch.testing.assert_close(parameters[1], fresh[1])


@pytest.mark.parametrize("skipped", [1, 3])
def test_steps_that_the_grad_scaler_skips_have_no_effect(name: str, skipped: int) -> None:
    parameters, optimizer = build(name)
    fresh, other = build(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(skipped + 2):
        give_gradients(parameters, step)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad *= scaler.get_scale() if step >= skipped else torch.inf
        scaler.scale(torch.zeros(()))  # as the loop does; makes the scale
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    for step in range(skipped, skipped + 2):
        give_gradients(fresh, step)
        other.step()
    for a, b in zip(parameters, fresh, strict=True):
        torch.testing.assert_close(a, b)


def test_a_weight_decay_set_before_a_step_is_used_in_it(name: str) -> None:
    """Against an optimizer built anew with that decay, with the old one's state, for each step."""
    decays = [0.04, 0.1, 0.4]
    parameters, optimizer = build(name)
    others, _ = build(name)
    state: dict[Any, Any] = {}
    for step, decay in enumerate(decays):
        set_rates(optimizer, step, Value(0.1), decays.__getitem__)
        give_gradients(parameters, step)
        optimizer.step()
        _, anew = build(name, weight_decay=decay, tensors=others)
        if state:
            anew.load_state_dict({"state": state, "param_groups": anew.state_dict()["param_groups"]})
        give_gradients(others, step)
        anew.step()
        state = copy.deepcopy(anew.state_dict()["state"])
    for a, b in zip(parameters, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.4, 0.0]


def test_a_first_step_of_lr_0_moves_nothing(name: str) -> None:
    """The first step of a warm-up from 0, with weights of norm 0 among the others."""
    parameters, optimizer = build(name)
    with torch.no_grad():
        parameters[2].zero_()
    before = [parameter.detach().clone() for parameter in parameters]
    for step, lr in enumerate((0.0, 0.1)):
        set_rates(optimizer, step, Value(lr), None)
        give_gradients(parameters, step)
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
        assert moved == [lr > 0] * 5
    assert all(parameter.isfinite().all() for parameter in parameters)


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_step_reads_no_value_from_the_device(name: str, tensor_lr: bool) -> None:
    """Tensors without values, on the device `meta`, raise when one is read."""
    parameters, optimizer = build(name, "meta")
    if tensor_lr and type(optimizer).__module__.startswith("torch."):
        pytest.skip("torch's own takes a tensor as learning rate on CUDA alone")
    for step in range(2):
        for group in optimizer.param_groups if tensor_lr else []:
            group["lr"] = torch.empty((), device="meta")
        give_gradients(parameters, step)
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_cuda_never_waits_for_the_device_and_equals_the_cpu_s(name: str) -> None:
    parameters, optimizer = build(name, "cuda")
    on_cpu, reference = build(name)
    for step in range(3):
        give_gradients(parameters, step)
        give_gradients(on_cpu, step)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        reference.step()
    for a, b in zip(parameters, on_cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-6)
