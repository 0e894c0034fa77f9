"""LARS whose ratio divides by ‖g‖ + weight_decay·‖w‖, against a literal transcription in float64, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from small_options import Value
from torch import Tensor, nn

from sslcli.contracts.optimizer import OptimizerOptions
from sslcli.optimizers.groups import set_rates
from sslcli.optimizers.lars import LARSOptions, LARSPlugin, LARSSimCLRPlugin

SHAPES = {"kernel": (4, 3, 3, 3), "matrix": (5, 4), "zero": (3, 3), "still": (2, 2), "vector": (6,)}
MOMENTUM, ETA = 0.9, 0.02


def literal_step(
    w: Tensor, g: Tensor, m: Tensor, lr: float, decay: float, *, scaled: bool, inside: bool
) -> tuple[Tensor, Tensor]:
    """One step as untitled-ai's lars.py computes it, with the learning rate inside the momentum, or else outside.

    Where a norm is zero its ratio is 0 or 0/0, and the tensor never moves; ours is 1.
    """
    ratio = 1.0
    weight_norm, gradient_norm = float(w.norm()), float(g.norm())
    if scaled and weight_norm > 0 and gradient_norm + decay * weight_norm > 0:
        ratio = ETA * weight_norm / (gradient_norm + decay * weight_norm)
    if inside:
        m = MOMENTUM * m + lr * ratio * (g + decay * w)
        return w - m, m
    m = MOMENTUM * m + ratio * (g + decay * w)
    return w - lr * m, m


@pytest.mark.parametrize("plugin", [LARSPlugin, LARSSimCLRPlugin])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale_1d", [False, True])
def test_lars_with_the_sum_of_norms_follows_the_formula(plugin: type[LARSPlugin], decay: float, scale_1d: bool) -> None:
    options = LARSOptions.parse(
        {
            "lr": 1.0, "weight_decay": decay, "momentum": MOMENTUM, "trust_coefficient": ETA,
            "trust_denominator": "sum_of_norms", "scale_1d": scale_1d,
        }
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    w = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    w["zero"].zero_()
    m = {name: torch.zeros_like(value) for name, value in w.items()}
    ours = {name: nn.Parameter(value.clone()) for name, value in w.items()}
    common = {"lr": 1.0, "lr_multiplier": 1.0}
    excluded = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = plugin.build(
        [
            {**common, "params": list(ours.values()), "weight_decay": decay, "excluded": False},
            {**common, "params": [excluded], "weight_decay": 0.0, "excluded": True},
        ],
        options,
    )
    plain, plain_m = excluded.detach().clone(), torch.zeros_like(excluded)
    for step, lr in enumerate([0.0, 0.5, 1.0, 0.3]):
        set_rates(optimizer, step, Value(lr), None)
        excluded.grad = torch.full((2, 2), 0.1 * (step + 1), dtype=torch.float64)
        inside = plugin is LARSSimCLRPlugin
        plain, plain_m = literal_step(plain, excluded.grad, plain_m, lr, 0.0, scaled=False, inside=inside)
        for name, parameter in ours.items():
            g = torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)
            parameter.grad = g.zero_() if name == "still" else g
            scaled = scale_1d or g.ndim > 1
            w[name], m[name] = literal_step(w[name], g, m[name], lr, decay, scaled=scaled, inside=inside)
        optimizer.step()
        for name, parameter in ours.items():
            torch.testing.assert_close(parameter.detach(), w[name], rtol=1e-10, atol=1e-13, msg=f"{name}, step {step}")
        torch.testing.assert_close(excluded.detach(), plain, rtol=1e-10, atol=1e-13)


def test_an_unknown_denominator_is_refused_and_the_default_is_the_norm_of_the_sum() -> None:
    with pytest.raises(ValueError, match="norm_of_sum"):
        LARSOptions.parse({"lr": 1.0, "trust_denominator": "sum"})
    options = LARSOptions(lr=1.0)
    assert isinstance(options, OptimizerOptions)
    assert (options.trust_denominator, options.scale_1d) == ("norm_of_sum", False)
