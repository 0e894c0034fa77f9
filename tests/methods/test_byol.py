"""BYOL: its loss over two views and more, and the norms of its heads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch.nn.functional as F
from method_helpers import batch, layers, make, train

from sslcli.methods.byol import BYOL


def build(**options: Any) -> BYOL:
    return make(BYOL, **{"projector": {"hidden_dim": 8, "output_dim": 5}, "predictor": {"hidden_dim": 8}, **options})


@pytest.mark.parametrize(
    ("sizes", "pairs"), [((4, 4), [(0, 1), (1, 0)]), ((4, 4, 2), [(0, 1), (1, 0), (2, 0), (2, 1)])]
)
def test_byol_loss_is_twice_the_mean_over_predictions_of_other_global_views(
    sizes: tuple[int, ...], pairs: list[tuple[int, int]]
) -> None:
    """With two views the paper's sum of both directions."""
    method, data = build(), batch(*sizes)
    train(method, 0, 2)  # so that the momentum encoder is no longer the online one
    loss = method(data).loss
    images, target = [view.image for view in data.views], method.momentum_encoder
    p = [method.predictor(method.projector(method.backbone(x).pooled)) for x in images]
    z = [target.projector(target.backbone(x).pooled) for x in images]
    each = [(2 - 2 * F.cosine_similarity(p[i], z[j])).mean().item() for i, j in pairs]
    assert loss.item() == pytest.approx(2 * sum(each) / len(each), abs=1e-5)


def test_byol_passes_one_view_at_a_time() -> None:
    method = build()
    features = method(batch(4, 4, 2)).features
    assert method.backbone.norm.num_batches_tracked.item() == 3
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 2
    assert features.equal(method.backbone(batch(4, 4, 2).views[0].image).pooled)


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        ("none", ""),
        ("batch", "bn "),
        ("layer", "layernorm "),
        ("group", "groupnorm "),
        ("batch_renorm", "batchrenorm1d "),
    ],
)
@pytest.mark.parametrize("standardized", [False, True])
def test_byol_heads_take_any_norm_and_weight_standardization(norm: str, name: str, standardized: bool) -> None:
    head = {"hidden_dim": 8, "norm": norm, "groups": 4, "weight_standardization": standardized}
    method = build(projector={**head, "output_dim": 5}, predictor=head)
    linear = "standardizedlinear" if standardized else "linear"
    bias = "" if "batch" in norm else "+bias"
    for part in (method.projector, method.predictor, method.momentum_encoder.projector):
        assert layers(part) == f"{linear}{bias} {name}relu {linear}"
    assert math.isfinite(train(method, 0, 3)[-1])
