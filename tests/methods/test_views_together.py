"""`views_together`, of every method that has it: one pass for all views, the same loss where there is no batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from method_helpers import COUNT, batch, make
from small_options import small
from torch import Tensor, nn

from sslcli.contracts.method import Method, View
from sslcli.modules import ViewsTogetherOptions
from sslcli.plugins import find, load

NAMES = [
    plugin.name
    for plugin in find("methods")
    if plugin.package == "sslcli" and issubclass(load("methods", plugin.name).Options, ViewsTogetherOptions)
]
each_method = pytest.mark.parametrize("name", NAMES)


def pair(name: str) -> list[Method]:
    """The same method, one view at a time and all together."""
    cls = load("methods", name)
    return [make(cls, **{**small(cls.Options), "views_together": together}) for together in (False, True)]


def without_batch_norm(module: nn.Module) -> nn.Module:
    for name, part in module.named_children():
        setattr(module, name, nn.Identity() if isinstance(part, nn.BatchNorm1d) else without_batch_norm(part))
    return module


def batch_norms(module: nn.Module) -> dict[str, nn.BatchNorm1d]:
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm1d)}


def test_the_siamese_and_the_redundancy_reduction_methods_have_it() -> None:
    assert set(NAMES) == {"barlow_twins", "byol", "moco_v3", "nnclr", "simsiam", "vicreg"}
    assert not any(load("methods", name).Options().views_together for name in NAMES)
    assert all(load("methods", name).Options.resume_rule("views_together") == "fixed" for name in NAMES)


@each_method
@pytest.mark.parametrize("sizes", [(4, 4), (4, 4, 4, 2, 2)], ids=str)
def test_without_batch_norm_loss_and_gradients_are_the_same(name: str, sizes: tuple[int, ...]) -> None:
    apart, together = (without_batch_norm(method).double() for method in pair(name))
    steps = []
    for method in (apart, together):
        data = batch(*sizes)
        data.views = [View(view.image.double()) for view in data.views]
        steps.append(method(data))
        steps[-1].loss.backward()
    torch.testing.assert_close(steps[1].loss, steps[0].loss)
    torch.testing.assert_close(steps[1].features, steps[0].features)
    torch.testing.assert_close(steps[1].metrics, steps[0].metrics)
    gradients: list[dict[str, Tensor | None]] = [
        {n: p.grad for n, p in m.named_parameters()} for m in (apart, together)
    ]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@each_method
def test_every_batch_norm_is_passed_once_for_both_views(name: str) -> None:
    for method, passes in zip(pair(name), (2, 1), strict=True):
        method(batch())
        counts = {key: norm.num_batches_tracked.item() for key, norm in batch_norms(method).items()}
        assert {key for key in counts if "momentum_encoder" in key} or not hasattr(method, "momentum_encoder")
        assert set(counts.values()) == {passes}, counts


@each_method
def test_statistics_are_those_of_the_joined_batch(name: str) -> None:
    method, data = pair(name)[1], batch()
    alone = copy.deepcopy(method)
    loss = method(data).loss
    features = alone.backbone(torch.cat([view.image for view in data.views])).pooled
    z = alone.projector(features)
    if hasattr(alone, "predictor"):
        alone.predictor(z)
    found, wanted = batch_norms(method), batch_norms(alone)
    for key, norm in wanted.items():
        if "momentum_encoder" not in key:
            torch.testing.assert_close(found[key].running_mean, norm.running_mean)
            torch.testing.assert_close(found[key].running_var, norm.running_var)
    pooled = F.adaptive_avg_pool2d(torch.cat([view.image for view in data.views]), 2)
    linear = method.backbone.linear(pooled.flatten(1))
    torch.testing.assert_close(method.backbone.norm.running_mean, 0.1 * linear.mean(dim=0))
    torch.testing.assert_close(method.backbone.norm.running_var, 0.9 + 0.1 * linear.var(dim=0))
    if hasattr(method, "momentum_encoder"):  # which has not moved yet
        slow = method.momentum_encoder.backbone.norm
        torch.testing.assert_close(slow.running_mean, method.backbone.norm.running_mean)
    assert loss.isfinite()


@each_method
def test_with_batch_norm_the_loss_differs(name: str) -> None:
    apart, together = pair(name)
    data = batch()
    data.views[1].image.mul_(3).add_(1)
    assert not torch.allclose(apart(data).loss, together(data).loss, rtol=1e-4)


@each_method
def test_local_views_pass_the_backbone_separately_and_the_heads_with_the_others(name: str) -> None:
    method = pair(name)[1]
    step = method(batch(4, 4, 2, 2, 2))
    assert method.backbone.norm.num_batches_tracked.item() == 2
    heads = [
        norm.num_batches_tracked.item() for key, norm in batch_norms(method).items() if key[:4] in ("proj", "pred")
    ]
    assert heads
    assert set(heads) == {1}
    assert step.features.shape == (COUNT, 6)
