"""LARS and LARC against literal transcriptions, one tensor at a time in float64, and in their best-known settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_options import Value
from torch import Tensor, nn

from sslcli.optimizers.groups import set_rates
from sslcli.optimizers.larc import LARC, LARCOptions, LARCPlugin
from sslcli.optimizers.lars import LARS, LARSOptions, LARSPlugin, LARSSimCLR, LARSSimCLRPlugin
from sslcli.optimizers.layerwise import LayerwiseSGD

SHAPES = {"kernel": (4, 3, 3, 3), "matrix": (5, 4), "zero": (3, 3), "still": (2, 2), "vector": (6,), "scalar": ()}
#: For LARC: with it some tensors' own learning rates are above the run's and others below.
ETA, EPS = 0.3, 1e-8
#: (w, g, m, lr) of one tensor → (w, m) after the step.
Step = Callable[[list[float], list[float], list[float], float], tuple[list[float], list[float]]]
KINDS = pytest.mark.parametrize("cls", [LARS, LARSSimCLR, LARC])


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    made["zero"].zero_()
    made["matrix"].mul_(10)
    return {name: nn.Parameter(value) for name, value in made.items()}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    made["still"].zero_()
    return made


def give_gradients(ours: dict[str, nn.Parameter], step: int) -> None:
    for name, gradient in gradients(step).items():
        ours[name].grad = gradient


def length(values: list[float]) -> float:
    return sum(value * value for value in values) ** 0.5


def literal_lars(
    w: list[float], g: list[float], m: list[float], lr: float, decay: float, scaled: bool, inside: bool
) -> tuple[list[float], list[float]]:
    """One step on one tensor with momentum 0.9 and η = 0.02."""
    d = [gi + decay * wi for gi, wi in zip(g, w, strict=True)]
    if scaled:
        ratio = 0.02 * length(w) / length(d) if length(w) > 0 and length(d) > 0 else 1.0
        d = [ratio * di for di in d]
    if inside:
        m = [0.9 * mi + lr * di for mi, di in zip(m, d, strict=True)]
        return [wi - mi for wi, mi in zip(w, m, strict=True)], m
    m = [0.9 * mi + di for mi, di in zip(m, d, strict=True)]
    return [wi - lr * mi for wi, mi in zip(w, m, strict=True)], m


def literal_larc(
    w: list[float], g: list[float], m: list[float], lr: float, decay: float, scaled: bool, clip: bool, nesterov: bool
) -> tuple[list[float], list[float], float]:
    """One step on one tensor with momentum 0.9; `scaled` is false for a vector under `exclude_1d`."""
    ratio = 1.0
    d = list(g)
    if scaled and length(w) > 0 and length(g) > 0:
        ratio = ETA * length(w) / (length(g) + decay * length(w) + EPS)
        if clip:
            ratio = 1.0 if lr == 0 else min(ratio / lr, 1.0)
        d = [ratio * (gi + decay * wi) for gi, wi in zip(g, w, strict=True)]
    m = [0.9 * mi + di for mi, di in zip(m, d, strict=True)]
    update = [di + 0.9 * mi for di, mi in zip(d, m, strict=True)] if nesterov else m
    return [wi - lr * ui for wi, ui in zip(w, update, strict=True)], m, ratio


def check_steps(optimizer: LayerwiseSGD, ours: dict[str, nn.Parameter], literal: Callable[[str], Step]) -> None:
    """Compares four steps with those of `literal(name)` for each tensor."""
    expected = {name: p.detach().flatten().tolist() for name, p in ours.items()}
    momenta = {name: [0.0] * p.numel() for name, p in ours.items()}
    for step, lr in enumerate([0.0, 0.5, 1.0, 0.3]):  # lr 0: the first step of a warm-up changes nothing
        set_rates(optimizer, step, Value(lr), None)
        give_gradients(ours, step)
        for name, gradient in gradients(step).items():
            values = gradient.flatten().tolist()
            expected[name], momenta[name] = literal(name)(expected[name], values, momenta[name], lr)
        optimizer.step()
        for name, parameter in ours.items():
            after = torch.tensor(expected[name], dtype=torch.float64).view(SHAPES[name])
            torch.testing.assert_close(parameter.detach(), after, rtol=1e-10, atol=1e-13, msg=f"{name}, step {step}")
    assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())


def first_lr(tensor_lr: bool) -> float | Tensor:
    return torch.tensor(1.0, dtype=torch.float64) if tensor_lr else 1.0


@pytest.mark.parametrize("cls", [LARS, LARSSimCLR])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_lars_follows_the_formula_over_several_steps(
    cls: type[LARS], decay: float, excluded: bool, tensor_lr: bool
) -> None:
    ours = parameters()
    groups = [{"params": list(ours.values()), "excluded": excluded}]
    optimizer = cls(groups, first_lr(tensor_lr), weight_decay=decay, trust_coefficient=0.02)

    def literal(name: str) -> Step:
        scaled = len(SHAPES[name]) >= 2 and not excluded
        return lambda w, g, m, lr: literal_lars(w, g, m, lr, decay, scaled, cls is LARSSimCLR)

    check_steps(optimizer, ours, literal)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exclude_1d", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_larc_follows_the_formula_over_several_steps(
    decay: float, clip: bool, exclude_1d: bool, nesterov: bool, tensor_lr: bool
) -> None:
    ours, ratios = parameters(), set()
    optimizer = LARC(
        ours.values(), first_lr(tensor_lr), 0.9, decay, ETA,
        clip=clip, exclude_1d=exclude_1d, eps=EPS, nesterov=nesterov,
    )  # fmt: skip

    def literal(name: str) -> Step:
        def step(w: list[float], g: list[float], m: list[float], lr: float) -> tuple[list[float], list[float]]:
            scaled = len(SHAPES[name]) >= 2 or not exclude_1d
            w, m, ratio = literal_larc(w, g, m, lr, decay, scaled, clip, nesterov)
            ratios.add(ratio)
            return w, m

        return step

    check_steps(optimizer, ours, literal)
    assert 1.0 in ratios
    assert min(ratios) < 1.0
    assert (max(ratios) > 1.0) == (not clip)


def test_both_lars_agree_at_a_constant_learning_rate_and_differ_when_it_falls() -> None:
    outside, inside = parameters(), parameters()
    optimizers = [LARS(outside.values(), lr=0.5, weight_decay=0.1), LARSSimCLR(inside.values(), 0.5, weight_decay=0.1)]
    for step in range(4):
        for named, optimizer in zip((outside, inside), optimizers, strict=True):
            give_gradients(named, step)
            optimizer.param_groups[0]["lr"] = 0.5 if step < 3 else 0.05
            optimizer.step()
        if step == 2:
            for name in outside:
                torch.testing.assert_close(outside[name], inside[name], rtol=1e-12, atol=1e-14)
    # SimCLR's momentum still contains steps at the old rate.
    assert (outside["kernel"] - inside["kernel"]).norm() > 1e-4


def test_swavs_larc_multiplies_the_two_learning_rates_for_all_tensors() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))], "excluded": False}]
    optimizer = LARCPlugin.build(groups, LARCOptions(lr=4.8, clip=False, exclude=()))
    for w in groups[0]["params"]:
        w.grad = torch.ones_like(w)
    optimizer.step()
    for w in groups[0]["params"]:
        torch.testing.assert_close(1 - w.detach(), torch.full_like(w, 4.8 * 0.001))


def test_solo_learns_lars_is_larc_with_clip_and_exclude_1d() -> None:
    vector, matrix = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [vector, matrix], "excluded": False, "weight_decay": 0.5}]
    options = LARCOptions(lr=0.1, trust_coefficient=0.02, clip=True, exclude_1d=True, exclude=(), weight_decay=0.5)
    optimizer = LARCPlugin.build(groups, options)
    vector.grad, matrix.grad = torch.ones(4), torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(vector.detach(), torch.full((4,), 0.9))  # neither decay nor ratio
    # η‖w‖/(‖g‖ + 0.5·‖w‖) = 0.02/1.5, below the lr; the direction is g + 0.5·w = 1.5.
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.98))


def test_an_excluded_group_of_larc_is_plain_sgd() -> None:
    w, same = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.full((2, 2), 3.0))
    sgd = torch.optim.SGD([same], lr=0.1, momentum=0.9, nesterov=True)
    larc = LARC([{"params": [w], "excluded": True}], 0.1, 0.9, nesterov=True)
    for step in range(3):
        for parameter in (w, same):
            parameter.grad = torch.full((2, 2), float(step + 1))
        sgd.step()
        larc.step()
    torch.testing.assert_close(w, same)


def test_lr_0_under_clip_leaves_no_nan_in_the_momentum() -> None:
    w = nn.Parameter(torch.full((2, 2), 1e-18))
    w.grad = torch.full((2, 2), 1e18)
    optimizer = LARC([w], 0.0, trust_coefficient=1e-12, clip=True)  # a ratio too small for float32, and 0/0 is NaN
    optimizer.step()
    assert optimizer.state[w]["momentum_buffer"].isfinite().all()
    assert torch.equal(w.detach(), torch.full((2, 2), 1e-18))


@KINDS
def test_gradients_are_not_changed(cls: type[LayerwiseSGD]) -> None:
    ours = parameters()
    give_gradients(ours, 0)
    cls(ours.values(), lr=0.1, weight_decay=0.1).step()
    assert all(torch.equal(ours[name].grad, gradient) for name, gradient in gradients(0).items())


@KINDS
def test_momentum_buffers_exist_from_the_start_and_are_zero_if_a_state_lacks_them(cls: type[LayerwiseSGD]) -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = cls([{"params": [first], "name": "main"}], lr=1.0)
    optimizer.add_param_group({"params": second, "lr": 0.7})
    assert [optimizer.state[p]["momentum_buffer"].tolist() for p in (first, second)] == [[[0.0, 0.0]] * 2] * 2
    assert [(group.get("name"), group["lr"]) for group in optimizer.param_groups] == [("main", 1.0), (None, 0.7)]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    first.grad = torch.full((2, 2), 0.5)
    optimizer.step()
    assert optimizer.state[first]["momentum_buffer"].any()


@KINDS
def test_channels_last_tensors_are_updated_alike_and_keep_their_format(cls: type[LayerwiseSGD]) -> None:
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        value = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        parameter = nn.Parameter(value.contiguous(memory_format=layout))
        optimizer = cls([parameter], lr=1.0, weight_decay=0.1)
        for step in range(3):
            gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(step))
            parameter.grad = gradient.contiguous(memory_format=layout)
            optimizer.step()
        assert optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()
        ends.append(parameter.detach().contiguous())
    torch.testing.assert_close(*ends)


def test_a_closure_is_called_with_gradients_and_its_loss_is_returned() -> None:
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w], lr=1.0)

    def closure() -> Any:
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert w.detach().max() < 1


@KINDS
@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}, {"trust_coefficient": 0.0}])
def test_numbers_out_of_range_are_refused(cls: type[LayerwiseSGD], wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cls([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **wrong})


def test_larc_refuses_a_negative_eps_and_nesterov_without_momentum() -> None:
    with pytest.raises(ValueError, match="eps"):
        LARC([nn.Parameter(torch.ones(2))], 0.1, eps=-1.0)
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        LARC([nn.Parameter(torch.ones(2))], 0.1, 0.0, nesterov=True)
    with pytest.raises(ValidationError, match="nesterov needs a momentum above 0"):
        LARCOptions(lr=0.1, momentum=0.0, nesterov=True)


def test_excluded_groups_of_lars_can_have_their_own_learning_rate() -> None:
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "excluded": excluded, "lr_multiplier": 2.0, "weight_decay": decay}
        for excluded, decay in ((False, 1e-6), (True, 0.0))
    ]
    options = LARSOptions(lr=0.2, lr_excluded=0.0048, weight_decay=1e-6)
    optimizer = LARSPlugin.build(groups, options)
    set_rates(optimizer, 0, Value(0.2 * 8 / 2, base=0.2 * 8), None)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.6, 0.0048 * 8])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-6, 0.0]
    assert groups[1]["lr_multiplier"] == 2.0  # the caller's groups are not changed


LARC_OPTIONS = {"momentum": 0.5, "clip": False, "exclude_1d": True, "eps": 0.1, "nesterov": True}


@pytest.mark.parametrize(
    ("plugin", "cls", "options"),
    [(LARSPlugin, LARS, {}), (LARSSimCLRPlugin, LARSSimCLR, {"momentum": 0.5}), (LARCPlugin, LARC, LARC_OPTIONS)],
)
def test_plugins_pass_their_options_on(plugin: Any, cls: type[LayerwiseSGD], options: dict[str, Any]) -> None:
    values = {"lr": 0.2, "trust_coefficient": 0.02, **options}
    optimizer = plugin.build(
        [{"params": [nn.Parameter(torch.ones(2))], "excluded": False}], plugin.Options.parse(values)
    )
    assert type(optimizer) is cls
    assert {key: optimizer.param_groups[0][key] for key in values} == values
