"""LARC against a literal transcription, one tensor at a time in float64, and the two settings it is known for."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sslcli.optimizers.groups import set_lr
from sslcli.optimizers.larc import LARC, LARCOptions, LARCPlugin

SHAPES = {"kernel": (4, 3, 3, 3), "matrix": (5, 4), "zero": (3, 3), "still": (2, 2), "vector": (6,), "scalar": ()}
#: The learning rate of its own is above the run's for some tensors and below it for others.
ETA, EPS = 0.3, 1e-8


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


def length(values: list[float]) -> float:
    return sum(value * value for value in values) ** 0.5


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


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exclude_1d", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_larc_is_the_formula_over_several_steps(
    decay: float, clip: bool, exclude_1d: bool, nesterov: bool, tensor_lr: bool
) -> None:
    ours = parameters()
    expected = {name: p.detach().flatten().tolist() for name, p in ours.items()}
    momenta = {name: [0.0] * p.numel() for name, p in ours.items()}
    start: float | Tensor = torch.tensor(1.0, dtype=torch.float64) if tensor_lr else 1.0
    optimizer = LARC(
        ours.values(), start, 0.9, decay, ETA, clip=clip, exclude_1d=exclude_1d, eps=EPS, nesterov=nesterov
    )
    ratios = set()
    for step, lr in enumerate([0.0, 0.5, 1.0, 0.3]):
        set_lr(optimizer, lambda _, lr=lr: lr, step, 1.0)
        for name, gradient in gradients(step).items():
            ours[name].grad = gradient
            scaled = gradient.ndim >= 2 or not exclude_1d
            values = gradient.flatten().tolist()
            expected[name], momenta[name], ratio = literal_larc(
                expected[name], values, momenta[name], lr, decay, scaled, clip, nesterov
            )
            ratios.add(ratio)
        optimizer.step()
        for name, parameter in ours.items():
            wanted = torch.tensor(expected[name], dtype=torch.float64).view(SHAPES[name])
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-10, atol=1e-13, msg=f"{name}, step {step}")
    assert 1.0 in ratios
    assert min(ratios) < 1.0
    assert (max(ratios) > 1.0) == (not clip)


def test_clip_takes_the_smaller_one_of_the_two_learning_rates() -> None:
    """‖w‖ = ‖g‖ = 2, so that the tensor's own rate is η = 0.02."""
    for lr, moved in ((0.5, 0.02), (0.01, 0.01)):
        w = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        w.grad = torch.ones(2, 2, dtype=torch.float64)
        LARC([w], lr, trust_coefficient=0.02, clip=True, eps=0.0).step()
        torch.testing.assert_close(1 - w.detach(), torch.full((2, 2), moved, dtype=torch.float64))


def test_without_clip_the_two_learning_rates_are_multiplied_on_all_tensors_as_in_swav() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))], "excluded": False}]
    optimizer = LARCPlugin.build(groups, LARCOptions(lr=4.8, clip=False, exclude=()))
    for w in groups[0]["params"]:
        w.grad = torch.ones_like(w)
    optimizer.step()
    for w in groups[0]["params"]:
        torch.testing.assert_close(1 - w.detach(), torch.full_like(w, 4.8 * 0.001))


def test_exclude_1d_is_solo_learns_lars_a_vector_gets_neither_decay_nor_ratio() -> None:
    vector, matrix = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [vector, matrix], "excluded": False, "weight_decay": 0.5}]
    options = LARCOptions(lr=0.1, trust_coefficient=0.02, clip=True, exclude_1d=True, exclude=(), weight_decay=0.5)
    optimizer = LARCPlugin.build(groups, options)
    vector.grad, matrix.grad = torch.ones(4), torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(vector.detach(), torch.full((4,), 0.9))
    # η‖w‖/(‖g‖ + 0.5·‖w‖) = 0.02/1.5, below the lr; the direction is g + 0.5·w = 1.5.
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.98))


def test_an_excluded_group_is_plain_sgd() -> None:
    w, same = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.full((2, 2), 3.0))
    sgd = torch.optim.SGD([same], lr=0.1, momentum=0.9, nesterov=True)
    larc = LARC([{"params": [w], "excluded": True}], 0.1, 0.9, nesterov=True)
    for step in range(3):
        for parameter in (w, same):
            parameter.grad = torch.full((2, 2), float(step + 1))
        sgd.step()
        larc.step()
    torch.testing.assert_close(w, same)


def test_a_tensor_of_norm_zero_gets_neither_decay_nor_ratio() -> None:
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARC([zero, still], lr=0.1, weight_decay=0.5)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((2, 2), -0.1))
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_lr_0_under_clip_leaves_no_nan_in_the_momentum() -> None:
    w = nn.Parameter(torch.full((2, 2), 1e-18))
    w.grad = torch.full((2, 2), 1e18)
    optimizer = LARC([w], 0.0, trust_coefficient=1e-12, clip=True)  # a ratio too small for float32, and 0/0 is NaN
    optimizer.step()
    assert optimizer.state[w]["momentum_buffer"].isfinite().all()
    assert torch.equal(w.detach(), torch.full((2, 2), 1e-18))


def test_the_gradients_are_left_as_they_are() -> None:
    ours, given = parameters(), gradients(0)
    for name, parameter in ours.items():
        parameter.grad = given[name].clone()
    LARC(ours.values(), lr=0.1, weight_decay=0.1).step()
    assert all(torch.equal(ours[name].grad, given[name]) for name in given)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"eps": -1.0}, {"trust_coefficient": 0.0}, {"momentum": 1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LARC([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **wrong})


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        LARC([nn.Parameter(torch.ones(2))], 0.1, 0.0, nesterov=True)
    with pytest.raises(ValidationError, match="nesterov needs a momentum above 0"):
        LARCOptions(lr=0.1, momentum=0.0, nesterov=True)


def test_the_plugin_passes_its_options_on() -> None:
    options = LARCOptions(
        lr=0.2, momentum=0.5, trust_coefficient=0.02, clip=False, exclude_1d=True, eps=0.1, nesterov=True
    )
    (group,) = LARCPlugin.build([{"params": [nn.Parameter(torch.ones(2))], "excluded": False}], options).param_groups
    kept = {"lr", "momentum", "trust_coefficient", "clip", "exclude_1d", "eps", "nesterov"}
    assert {key: group[key] for key in kept} == {key: getattr(options, key) for key in kept}
