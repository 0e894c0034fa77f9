"""Barlow Twins: its projector, its loss over two views and over many, its recipe and defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pooled_backbone import Pooled
from pydantic import ValidationError
from torch import Tensor, nn

from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, RunInfo, View
from sslcli.losses import barlow_twins
from sslcli.methods.barlow_twins import BarlowTwins


def build(**options: Any) -> BarlowTwins:
    torch.manual_seed(0)
    small = {"projector": {"hidden_dim": 8, "output_dim": 5, **options.pop("projector", {})}, **options}
    data = DataInfo("random", 3, (4, 4), (0.5,) * 3, (0.2,) * 3)
    return BarlowTwins(Pooled(), BarlowTwins.Options.parse(small), RunInfo(10, 5, 2, 8, 1, data))


def batch(*sizes: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [View(torch.randn(8, 3, size, size, generator=generator)) for size in sizes or (4, 4)]
    return Batch(views, None, torch.arange(8), {})


def embeddings(method: BarlowTwins, data: Batch) -> list[Tensor]:
    return [method.projector(method.backbone(view.image).pooled) for view in data.views]


def test_barlow_projector_has_three_layers_without_bias_and_no_last_norm() -> None:
    projector = build().projector
    layers = [m for m in projector.modules() if not list(m.children())]
    assert [type(m) for m in layers] == [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear]
    assert all(m.bias is None for m in layers if isinstance(m, nn.Linear))


def test_barlow_projector_without_norm_has_no_batch_norm_at_all() -> None:
    method = build(projector={"norm": "none"})
    assert not any(isinstance(m, nn.BatchNorm1d) for m in method.projector.modules())
    assert method(batch()).loss.isfinite()


def test_barlow_defaults_are_the_papers() -> None:
    options = BarlowTwins.Options.parse({})
    projector = options.projector
    assert (projector.layers, projector.hidden_dim, projector.output_dim) == (3, 8192, 8192)
    assert (options.lambda_, options.scale) == (0.0051, 1.0)
    optimizer, schedule = BarlowTwins.defaults["optimizer"], BarlowTwins.defaults["schedule"]
    assert (optimizer["lr"], optimizer["lr_excluded"], optimizer["weight_decay"]) == (0.2, 0.0048, 1e-6)
    assert (schedule["warmup_epochs"], schedule["final"]) == (10, 0.001)


def test_barlow_loss_is_that_of_the_two_views_embeddings() -> None:
    method, data = build(lambda_=0.3, scale=0.1), batch()
    out = method(data)
    z1, z2 = embeddings(method, data)
    torch.testing.assert_close(out.loss, 0.1 * barlow_twins(z1, z2, 0.3))
    terms = out.metrics["on_diagonal"] + 0.3 * out.metrics["off_diagonal"]
    torch.testing.assert_close(out.loss, 0.1 * terms)


def test_barlow_trains_through_both_views() -> None:
    method, data = build(), batch()
    images = [view.image.requires_grad_() for view in data.views]
    method(data).loss.backward()
    assert all(image.grad.abs().sum() > 0 for image in images)


def test_barlow_with_local_views_is_the_mean_over_pairs_with_a_global_one() -> None:
    method, data = build(lambda_=0.3), batch(4, 4, 2, 2)
    z = embeddings(method, data)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]  # not (2, 3): both are local
    expected = torch.stack([barlow_twins(z[a], z[b], 0.3) for a, b in pairs]).mean()
    torch.testing.assert_close(method(data).loss, expected)


def test_barlow_passes_one_view_at_a_time() -> None:
    method, data = build(), batch()
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 2
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)
    assert not features.requires_grad


def test_barlow_reports_the_cosines_of_pairs() -> None:
    method, data = build(), batch()
    data.views[1] = data.views[0]
    metrics = method(data).metrics
    assert metrics["pos_cos"].item() == pytest.approx(1, abs=1e-5)
    assert metrics["neg_cos"].item() < 0.9


@pytest.mark.parametrize("sizes", [(4,), (4, 2), (2, 4), (4, 4, 6)])
def test_barlow_refuses_views_that_it_cannot_pair(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="views: barlow_twins needs"):
        build()(batch(*sizes))


@pytest.mark.parametrize("options", [{"lambda_": -0.1}, {"scale": 0}, {"projector": {"layers": 0}}, {"lambda": 1}])
def test_barlow_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BarlowTwins.Options.parse(options)


def test_barlow_takes_byols_views() -> None:
    assert BarlowTwins.recipe(BarlowTwins.Options(), 224) == {"preset": "byol"}
    assert BarlowTwins.recipe(BarlowTwins.Options(), 64) == {"preset": "cifar_asym"}
