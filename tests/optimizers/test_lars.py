"""LARS, both ways, against a literal transcription, one tensor at a time in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslcli.optimizers.groups import set_lr
from sslcli.optimizers.lars import LARS, LARSOptions, LARSPlugin, LARSSimCLR, LARSSimCLRPlugin

SHAPES = {"kernel": (4, 3, 3, 3), "matrix": (5, 4), "zero": (3, 3), "still": (2, 2), "vector": (6,), "scalar": ()}


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    made["zero"].zero_()
    return {name: nn.Parameter(value) for name, value in made.items()}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    made["still"].zero_()
    return made


def length(values: list[float]) -> float:
    return sum(value * value for value in values) ** 0.5


def literal_lars(
    w: list[float],
    g: list[float],
    m: list[float],
    lr: float,
    momentum: float,
    decay: float,
    eta: float,
    scaled: bool,
    inside: bool,
) -> tuple[list[float], list[float]]:
    d = [gi + decay * wi for gi, wi in zip(g, w, strict=True)]
    if scaled:
        ratio = eta * length(w) / length(d) if length(w) > 0 and length(d) > 0 else 1.0
        d = [ratio * di for di in d]
    if inside:
        m = [momentum * mi + lr * di for mi, di in zip(m, d, strict=True)]
        return [wi - mi for wi, mi in zip(w, m, strict=True)], m
    m = [momentum * mi + di for mi, di in zip(m, d, strict=True)]
    return [wi - lr * mi for wi, mi in zip(w, m, strict=True)], m


@pytest.mark.parametrize("kind", [LARS, LARSSimCLR])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_lars_is_the_formula_over_several_steps(
    kind: type[LARS], decay: float, excluded: bool, tensor_lr: bool
) -> None:
    ours = parameters()
    expected = {name: p.detach().flatten().tolist() for name, p in ours.items()}
    momenta = {name: [0.0] * p.numel() for name, p in ours.items()}
    start: float | Tensor = torch.tensor(1.0, dtype=torch.float64) if tensor_lr else 1.0
    optimizer = kind(
        [{"params": list(ours.values()), "excluded": excluded}], start, weight_decay=decay, trust_coefficient=0.02
    )
    for step, lr in enumerate([0.0, 0.5, 1.0, 0.3]):  # lr 0: the first step of a warm-up moves nothing
        set_lr(optimizer, lambda _, lr=lr: lr, step, 1.0)
        for name, gradient in gradients(step).items():
            ours[name].grad = gradient
            expected[name], momenta[name] = literal_lars(
                expected[name],
                gradient.flatten().tolist(),
                momenta[name],
                lr,
                0.9,
                decay,
                0.02,
                scaled=gradient.ndim >= 2 and not excluded,
                inside=kind is LARSSimCLR,
            )
        optimizer.step()
        for name, parameter in ours.items():
            values = torch.tensor(expected[name], dtype=torch.float64).view(SHAPES[name])
            torch.testing.assert_close(parameter.detach(), values, rtol=1e-10, atol=1e-13, msg=f"{name}, step {step}")
    assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())


def test_the_two_ways_are_one_while_the_learning_rate_stays_and_part_when_it_falls() -> None:
    outside, inside = parameters(), parameters()
    optimizers = [LARS(outside.values(), lr=0.5, weight_decay=0.1), LARSSimCLR(inside.values(), 0.5, weight_decay=0.1)]
    for step in range(4):
        for named, optimizer in zip((outside, inside), optimizers, strict=True):
            for name, gradient in gradients(step).items():
                named[name].grad = gradient
            optimizer.param_groups[0]["lr"] = 0.5 if step < 3 else 0.05
            optimizer.step()
        if step == 2:
            for name in outside:
                torch.testing.assert_close(outside[name], inside[name], rtol=1e-12, atol=1e-14)
    # What the momentum took in at the old rate goes on at it.
    assert (outside["kernel"] - inside["kernel"]).norm() > 1e-4


@pytest.mark.parametrize("kind", [LARS, LARSSimCLR])
def test_lars_with_lr_0_or_weights_of_norm_zero_makes_no_nan(kind: type[LARS]) -> None:
    ours = parameters()
    before = {name: parameter.detach().clone() for name, parameter in ours.items()}
    optimizer = kind(ours.values(), lr=0.0, weight_decay=0.1)
    for step, lr in enumerate([0.0, 0.5]):
        optimizer.param_groups[0]["lr"] = lr
        for name, gradient in gradients(step).items():
            ours[name].grad = gradient
        optimizer.step()
        if lr == 0:
            assert all(torch.equal(ours[name], before[name]) for name in ours)
    assert all(parameter.isfinite().all() for parameter in ours.values())
    assert not torch.equal(ours["zero"], before["zero"])


def test_tensors_whose_weights_or_gradients_are_zero_get_neither_nan_nor_a_standstill() -> None:
    w = nn.Parameter(torch.zeros(2, 2))
    still = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w, still], lr=1.0)
    w.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(w.detach(), -torch.ones(2, 2))
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_the_gradients_are_left_as_they_are() -> None:
    ours = parameters()
    given = gradients(0)
    for name, parameter in ours.items():
        parameter.grad = given[name].clone()
    LARS(ours.values(), lr=0.1).step()
    assert all(torch.equal(ours[name].grad, given[name]) for name in given)


def test_momentum_buffers_are_there_from_the_start_also_in_groups_added_later() -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([first], lr=1.0)
    optimizer.add_param_group({"params": second})
    assert [optimizer.state[p]["momentum_buffer"].tolist() for p in (first, second)] == [[[0.0, 0.0]] * 2] * 2


def test_a_loaded_state_without_some_parameter_is_completed_with_zeros() -> None:
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w], lr=1.0, trust_coefficient=1.0)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    w.grad = torch.full((2, 2), 0.5)
    optimizer.step()
    assert torch.equal(w.detach(), torch.zeros(2, 2))


def test_channels_last_tensors_are_updated_alike_and_keep_their_format() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(4, 3, 3, 3, generator=generator)
    plain, last = nn.Parameter(value.clone()), nn.Parameter(value.clone(memory_format=torch.channels_last))
    for parameter in (plain, last):
        optimizer = LARS([parameter], lr=1.0, weight_decay=0.1)
        for step in range(3):
            gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(step))
            parameter.grad = gradient.clone(memory_format=torch.preserve_format).to(
                memory_format=torch.channels_last if parameter is last else torch.contiguous_format
            )
            optimizer.step()
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert buffer.stride() == parameter.stride()
    torch.testing.assert_close(plain.detach(), last.detach().contiguous())


def test_a_step_after_loading_the_state_is_the_step_that_would_have_been() -> None:
    def stepped(optimizer: LARS, named: dict[str, nn.Parameter], step: int) -> None:
        for name, gradient in gradients(step).items():
            named[name].grad = gradient
        optimizer.step()

    first = parameters()
    one = LARS(first.values(), lr=0.1, weight_decay=0.01)
    stepped(one, first, 0)
    second = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in first.items()}
    two = LARS(second.values(), lr=0.1, weight_decay=0.01)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    stepped(one, first, 1)
    stepped(two, second, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_groups_can_be_added_and_keep_their_own_keys() -> None:
    optimizer = LARS([{"params": [nn.Parameter(torch.ones(2))], "name": "main", "lr_multiplier": 3.0}], lr=0.1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "name": "late", "lr": 0.7})
    first, second = optimizer.param_groups
    assert (first["name"], first["lr_multiplier"], first["lr"], first["excluded"]) == ("main", 3.0, 0.1, False)
    assert (second["name"], second["lr"], second["momentum"]) == ("late", 0.7, 0.9)


def test_a_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w], lr=1.0)

    def closure() -> Any:
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert w.detach().max() < 1


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}, {"trust_coefficient": 0.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **wrong})


def test_the_plugin_gives_excluded_groups_their_own_learning_rate() -> None:
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "excluded": excluded, "lr_multiplier": 2.0, "weight_decay": decay}
        for excluded, decay in ((False, 1e-6), (True, 0.0))
    ]
    options = LARSOptions(lr=0.2, lr_excluded=0.0048, weight_decay=1e-6)
    optimizer = LARSPlugin.build(groups, options)
    set_lr(optimizer, lambda step: 0.2 * 8 / 2, 0, base_lr=0.2 * 8)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.6, 0.0048 * 8])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-6, 0.0]
    assert groups[1]["lr_multiplier"] == 2.0  # what the caller holds is not changed


@pytest.mark.parametrize(("plugin", "kind"), [(LARSPlugin, LARS), (LARSSimCLRPlugin, LARSSimCLR)])
def test_the_plugins_pass_their_options_on(plugin: type[LARSPlugin], kind: type[LARS]) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "excluded": False}]
    optimizer = plugin.build(groups, LARSOptions(lr=0.2, momentum=0.5, trust_coefficient=0.02))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["trust_coefficient"]) == (0.2, 0.5, 0.02)
