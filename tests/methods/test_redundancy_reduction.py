"""Barlow Twins and VICReg: their losses over two views and more, gradients, metrics, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import batch, make
from pydantic import ValidationError
from torch import Tensor

from sslcli.contracts.method import Method
from sslcli.losses import barlow_twins, vicreg
from sslcli.methods.barlow_twins import BarlowTwins
from sslcli.methods.vicreg import VICReg

OPTIONS: dict[type[Method], dict[str, float]] = {
    BarlowTwins: {"lambda_": 0.3, "scale": 0.1},
    VICReg: {"invariance": 2.0, "variance": 3.0, "covariance": 0.5, "epsilon": 0.01},
}
every = pytest.mark.parametrize("cls", OPTIONS)


def build(cls: type[Method]) -> Any:
    return make(cls, projector={"hidden_dim": 8, "output_dim": 5}, **OPTIONS[cls])


def literal(cls: type[Method], z1: Tensor, z2: Tensor) -> Tensor:
    return 0.1 * barlow_twins(z1, z2, 0.3) if cls is BarlowTwins else vicreg(z1, z2, **OPTIONS[cls])


@every
@pytest.mark.parametrize(
    ("sizes", "pairs"),
    [
        ((4, 4), [(0, 1)]),
        ((4, 4, 2, 2), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]),  # not (2, 3): both are local
        ((4, 4, 4, 2), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_the_loss_is_the_mean_over_pairs_with_a_global_view(
    cls: type[Method], sizes: tuple[int, ...], pairs: list[tuple[int, int]]
) -> None:
    method, data = build(cls), batch(*sizes)
    out = method(data)
    z = [method.projector(method.backbone(view.image).pooled) for view in data.views]
    torch.testing.assert_close(out.loss, torch.stack([literal(cls, z[i], z[j]) for i, j in pairs]).mean())
    if cls is BarlowTwins:
        terms = 0.1 * (out.metrics["on_diagonal"] + 0.3 * out.metrics["off_diagonal"])
    else:
        terms = sum(OPTIONS[cls][name] * out.metrics[name] for name in ("invariance", "variance", "covariance"))
    torch.testing.assert_close(out.loss.detach(), terms)


@every
def test_both_views_get_a_gradient(cls: type[Method]) -> None:
    method, data = build(cls), batch()
    images = [view.image.requires_grad_() for view in data.views]
    method(data).loss.backward()
    assert all(image.grad.abs().sum() > 0 for image in images)


@every
def test_one_view_is_passed_at_a_time(cls: type[Method]) -> None:
    method, data = build(cls), batch()
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 2
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)


@every
def test_the_cosines_of_pairs_are_reported(cls: type[Method]) -> None:
    method, data = build(cls), batch()
    data.views[1] = data.views[0]
    metrics = method(data).metrics
    assert metrics["pos_cos"].item() == pytest.approx(1, abs=1e-5)
    assert metrics["neg_cos"].item() < 0.9


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (BarlowTwins, {"lambda_": -0.1}),
        (BarlowTwins, {"scale": 0}),
        (BarlowTwins, {"projector": {"layers": 0}}),
        (VICReg, {"variance": -1}),
        (VICReg, {"epsilon": 0}),
    ],
)
def test_options_out_of_range_are_refused(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.Options.parse(options)
