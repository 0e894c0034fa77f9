"""VICReg: its projector, its loss over two views and over many, its recipe and defaults."""

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
from sslcli.losses import vicreg
from sslcli.methods.vicreg import VICReg


def build(**options: Any) -> VICReg:
    torch.manual_seed(0)
    small = {"projector": {"hidden_dim": 8, "output_dim": 5, **options.pop("projector", {})}, **options}
    data = DataInfo("random", 3, (4, 4), (0.5,) * 3, (0.2,) * 3)
    return VICReg(Pooled(), VICReg.Options.parse(small), RunInfo(10, 5, 2, 8, 1, data))


def batch(*sizes: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [View(torch.randn(8, 3, size, size, generator=generator)) for size in sizes or (4, 4)]
    return Batch(views, None, torch.arange(8), {})


def embeddings(method: VICReg, data: Batch) -> list[Tensor]:
    return [method.projector(method.backbone(view.image).pooled) for view in data.views]


def test_vicreg_projector_has_three_layers_and_ends_in_a_linear_one_without_bias() -> None:
    layers = [m for m in build().projector.modules() if not list(m.children())]
    assert [type(m) for m in layers] == [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear]
    assert layers[-1].bias is None


def test_vicreg_projector_without_norm_has_no_batch_norm_at_all() -> None:
    method = build(projector={"norm": "none"})
    assert not any(isinstance(m, nn.BatchNorm1d) for m in method.projector.modules())
    assert method(batch()).loss.isfinite()


def test_vicreg_defaults_are_the_papers() -> None:
    options = VICReg.Options.parse({})
    projector = options.projector
    assert (projector.layers, projector.hidden_dim, projector.output_dim) == (3, 8192, 8192)
    assert (options.invariance, options.variance, options.covariance, options.epsilon) == (25, 25, 1, 1e-4)
    optimizer, schedule = VICReg.defaults["optimizer"], VICReg.defaults["schedule"]
    assert (optimizer["name"], optimizer["lr"], optimizer["weight_decay"]) == ("lars", 0.2, 1e-6)
    assert (schedule["warmup_epochs"], schedule["final"]) == (10, 0.001)


def test_vicreg_loss_is_that_of_the_two_views_embeddings() -> None:
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 0.5, "epsilon": 0.01}
    method, data = build(**weights), batch()
    out = method(data)
    torch.testing.assert_close(out.loss, vicreg(*embeddings(method, data), **weights))
    terms = sum(weights[name] * out.metrics[name] for name in ("invariance", "variance", "covariance"))
    torch.testing.assert_close(out.loss.detach(), terms)


def test_vicreg_trains_through_both_views() -> None:
    method, data = build(), batch()
    images = [view.image.requires_grad_() for view in data.views]
    method(data).loss.backward()
    assert all(image.grad.abs().sum() > 0 for image in images)


def test_vicreg_with_local_views_is_the_mean_over_pairs_with_a_global_one() -> None:
    method, data = build(), batch(4, 4, 4, 2, 2)
    z = embeddings(method, data)
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5) if (a, b) != (3, 4)]  # both of which are local
    expected = torch.stack([vicreg(z[a], z[b]) for a, b in pairs]).mean()
    torch.testing.assert_close(method(data).loss, expected)


def test_vicreg_passes_one_view_at_a_time() -> None:
    method, data = build(), batch()
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 2
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)
    assert not features.requires_grad


def test_vicreg_reports_the_cosines_of_pairs() -> None:
    method, data = build(), batch()
    data.views[1] = data.views[0]
    metrics = method(data).metrics
    assert metrics["invariance"].item() == 0
    assert metrics["pos_cos"].item() == pytest.approx(1, abs=1e-5)
    assert metrics["neg_cos"].item() < 0.9


@pytest.mark.parametrize("sizes", [(4,), (4, 2), (2, 4), (4, 4, 6)])
def test_vicreg_refuses_views_that_it_cannot_pair(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="views: vicreg needs"):
        build()(batch(*sizes))


@pytest.mark.parametrize("options", [{"variance": -1}, {"epsilon": 0}, {"projector": {"layers": 0}}, {"weight": 1}])
def test_vicreg_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VICReg.Options.parse(options)


def test_vicreg_takes_byols_views() -> None:
    assert VICReg.recipe(VICReg.Options(), 224) == {"preset": "byol"}
    assert VICReg.recipe(VICReg.Options(), 32) == {"preset": "cifar_asym"}
