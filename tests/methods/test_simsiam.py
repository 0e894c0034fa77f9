"""SimSiam: its loss over two views and more, its stop-gradient, its groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_helpers import batch, make

from sslcli.contracts.method import View
from sslcli.methods.simsiam import SimSiam


def build(**options: Any) -> SimSiam:
    return make(SimSiam, **{"projector": {"hidden_dim": 8, "output_dim": 5}, "predictor": {"hidden_dim": 4}, **options})


@pytest.mark.parametrize(
    ("sizes", "pairs"), [((4, 4), [(0, 1), (1, 0)]), ((4, 4, 2), [(0, 1), (1, 0), (2, 0), (2, 1)])]
)
def test_simsiam_loss_is_the_mean_over_predictions_of_other_global_views(
    sizes: tuple[int, ...], pairs: list[tuple[int, int]]
) -> None:
    method, data = build(), batch(*sizes)
    loss = method(data).loss
    z = [method.projector(method.backbone(view.image).pooled) for view in data.views]
    p = [method.predictor(each) for each in z]
    each = [-F.cosine_similarity(p[i], z[j]).mean().item() for i, j in pairs]
    assert loss.item() == pytest.approx(sum(each) / len(each), abs=1e-6)
    assert each[0] != pytest.approx(each[1], abs=1e-3)


def test_simsiam_target_gets_no_gradient() -> None:
    method, data = build(), batch()
    with torch.no_grad():
        z1, z2 = (method.projector(method.backbone(view.image).pooled) for view in data.views)  # plain numbers
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


@pytest.mark.parametrize("constant", [True, False])
def test_simsiam_predictors_learning_rate_is_constant_or_follows_the_schedule(constant: bool) -> None:
    method = build(predictor={"hidden_dim": 4, "constant_lr": constant})
    main, predictor = method.parameter_groups()
    assert (main.constant_lr, predictor.constant_lr) == (False, constant)
    names = [name for name, _ in method.named_parameters()]
    assert list(predictor.parameters) == [name for name in names if name.startswith("predictor.")]
    assert list(main.parameters) == [name for name in names if not name.startswith("predictor.")]
