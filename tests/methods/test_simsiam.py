"""SimSiam: its heads, its stop-gradient, its groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pooled_backbone import Pooled
from torch import nn

from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, RunInfo, View
from sslcli.methods.simsiam import SimSiam


def build(**options: Any) -> SimSiam:
    torch.manual_seed(0)
    small = {"projector": {"hidden_dim": 8, "output_dim": 5}, "predictor": {"hidden_dim": 4}, **options}
    data = DataInfo("random", 3, (2, 2), (0.5,) * 3, (0.2,) * 3)
    return SimSiam(Pooled(), SimSiam.Options.parse(small), RunInfo(10, 5, 2, 8, 1, data))


def batch(*sizes: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = [View(torch.randn(8, 3, size, size, generator=generator)) for size in sizes or (2, 2)]
    return Batch(images, None, torch.arange(8), {})


def kinds(head: nn.Module) -> list[type[nn.Module]]:
    return [type(layer) for layer in head.modules() if not list(layer.children())]


def test_simsiam_projector_has_three_layers_and_ends_in_a_norm_without_affine() -> None:
    projector = build().projector
    assert kinds(projector) == [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear, nn.BatchNorm1d]
    norms = [m for m in projector.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [m.affine for m in norms] == [True, True, False]
    assert all(m.bias is None for m in projector.modules() if isinstance(m, nn.Linear))


def test_simsiam_projector_of_cifar_has_two_layers_by_option() -> None:
    projector = build(projector={"layers": 2, "hidden_dim": 8, "output_dim": 5}).projector
    assert kinds(projector) == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]


def test_simsiam_predictor_ends_in_a_plain_linear_layer_with_bias() -> None:
    predictor = build().predictor
    assert kinds(predictor) == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    first, last = (m for m in predictor.modules() if isinstance(m, nn.Linear))
    assert first.bias is None
    assert last.bias is not None
    assert (first.in_features, first.out_features, last.out_features) == (5, 4, 5)


def test_simsiam_defaults_are_the_papers_sizes() -> None:
    options = SimSiam.Options.parse({})
    assert (options.projector.layers, options.projector.hidden_dim, options.projector.output_dim) == (3, 2048, 2048)
    assert options.predictor.hidden_dim == 512


def test_simsiam_loss_is_the_mean_of_both_directions() -> None:
    method, data = build(), batch()
    loss = method(data).loss
    z1, z2 = (method.projector(method.backbone(view.image).pooled) for view in data.views)
    p1, p2 = method.predictor(z1), method.predictor(z2)
    both = [-F.cosine_similarity(p1, z2).mean().item(), -F.cosine_similarity(p2, z1).mean().item()]
    assert loss.item() == pytest.approx(sum(both) / 2, abs=1e-6)
    assert both[0] != pytest.approx(both[1], abs=1e-3)


def test_simsiam_target_gets_no_gradient() -> None:
    method, data = build(), batch()
    with torch.no_grad():
        z1, z2 = (method.projector(method.backbone(view.image).pooled) for view in data.views)  # numbers, nothing else
    p1, p2 = (method.predictor(method.projector(method.backbone(view.image).pooled)) for view in data.views)
    (-F.cosine_similarity(p1, z2).mean() / 2 - F.cosine_similarity(p2, z1).mean() / 2).backward()
    expected = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    method(data).loss.backward()
    for name, parameter in method.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name


def test_simsiam_passes_one_view_at_a_time() -> None:
    method, data = build(), batch()
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 2
    data.views[1] = View(data.views[1].image + 5)
    assert torch.equal(method(data).features, features)


def test_simsiam_features_are_the_backbones_for_the_first_view_detached() -> None:
    method, data = build(), batch()
    features = method(data).features
    assert not features.requires_grad
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)


def test_simsiam_predictors_learning_rate_does_not_decay() -> None:
    method = build()
    main, predictor = method.parameter_groups()
    assert not main.constant_lr
    assert predictor.constant_lr
    assert set(predictor.parameters) == {name for name, _ in method.named_parameters() if name.startswith("predictor.")}
    assert not set(main.parameters) & set(predictor.parameters)
    assert set(main.parameters) | set(predictor.parameters) == {name for name, _ in method.named_parameters()}


def test_simsiam_predictor_follows_the_schedule_on_request() -> None:
    _, predictor = build(predictor={"hidden_dim": 4, "constant_lr": False}).parameter_groups()
    assert not predictor.constant_lr


def test_simsiam_takes_moco_v2s_views_and_no_blur_on_small_images() -> None:
    assert SimSiam.recipe(SimSiam.Options(), 224) == {"preset": "moco_v2"}
    assert SimSiam.recipe(SimSiam.Options(), 32) == {"preset": "moco_v2", "blur": 0.0}


@pytest.mark.parametrize("sizes", [(2,), (2, 1), (1, 2), (2, 2, 3)])
def test_simsiam_refuses_views_without_two_global_ones_in_front(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="views: simsiam needs"):
        build()(batch(*sizes))


def test_simsiam_with_local_views_is_the_mean_over_predictions_of_global_ones() -> None:
    method, data = build(), batch(4, 4, 2)
    loss = method(data).loss
    z = [method.projector(method.backbone(view.image).pooled) for view in data.views]
    p = [method.predictor(each) for each in z]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]  # view 2 is local: it predicts, and is not predicted
    cosines = [F.cosine_similarity(p[view], z[target]).mean().item() for view, target in pairs]
    assert loss.item() == pytest.approx(-sum(cosines) / 4, abs=1e-6)


def test_simsiam_heads_can_do_without_any_batch_norm() -> None:
    off = {"norm": "none", "last_norm": "none"}
    method = build(projector={"hidden_dim": 8, "output_dim": 5, **off}, predictor={"hidden_dim": 4, **off})
    assert kinds(method.projector) == [*[nn.Linear, nn.ReLU] * 2, nn.Linear]
    assert kinds(method.predictor) == [nn.Linear, nn.ReLU, nn.Linear]
    method(batch()).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_simsiam_heads_can_have_batch_norm_everywhere() -> None:
    full = {"last_norm": "full"}
    method = build(projector={"hidden_dim": 8, "output_dim": 5, **full}, predictor={"hidden_dim": 4, **full})
    for head in (method.projector, method.predictor):
        assert kinds(head)[-1] is nn.BatchNorm1d
        assert head[-1].affine
