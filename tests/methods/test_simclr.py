"""SimCLR: one pass over all views of a size, the right pairs, what it reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_helpers import batch, make
from pydantic import ValidationError
from torch import Tensor

from sslcli.losses import dcl, nt_xent
from sslcli.methods.simclr import SimCLR, SimCLROptions


def build(**options: Any) -> SimCLR:
    return make(SimCLR, **{"projector": {"output_dim": 8}, "temperature": 0.2, **options})


def nt_xent_of_many(views: list[Tensor], temperature: float) -> float:
    """−log of the softmax at a positive, the mean over an image's other views, then over all embeddings."""
    cosines = F.normalize(torch.stack(views, dim=1).detach().double(), dim=2)  # N×V×E
    total = 0.0
    for n, image in enumerate(cosines):
        for v, anchor in enumerate(image):
            weights = (cosines @ anchor / temperature).exp()
            denominator = weights.sum() - weights[n, v]
            others = [-(weights[n, p] / denominator).log() for p in range(len(views)) if p != v]
            total += float(sum(others)) / len(others)
    return total / cosines.shape[0] / len(views)


@pytest.mark.parametrize("views", [2, 3])
def test_the_loss_is_nt_xent_of_all_views_at_the_option_s_temperature(views: int) -> None:
    method, data = build(), batch(*[4] * views)
    step = method(data)
    together = method.backbone(torch.cat([view.image for view in data.views])).pooled
    z = method.projector(together).chunk(views)
    assert step.loss.item() == pytest.approx(nt_xent_of_many(list(z), 0.2), rel=1e-5)
    assert torch.equal(step.features, together[:8])
    if views == 2:
        torch.testing.assert_close(step.loss, nt_xent(z[0], z[1], 0.2))


def test_cosines_and_found_positives_are_reported() -> None:
    data = batch()
    data.views[1] = data.views[0]
    metrics = build()(data).metrics
    assert set(metrics) == {"pos_cos", "neg_cos", "contrast_top1", "contrast_top5"}
    assert metrics["pos_cos"].item() == pytest.approx(1)
    assert metrics["contrast_top1"].item() == metrics["contrast_top5"].item() == 1
    assert metrics["neg_cos"].item() < 0.9
    assert set(build()(batch(4, 4, 4)).metrics) == {"pos_cos", "neg_cos"}  # several positives


def test_a_few_steps_bring_the_views_of_an_image_together() -> None:
    method, data = build(temperature=0.5), batch()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    first = method(data)
    for _ in range(20):
        optimizer.zero_grad()
        method(data).loss.backward()
        optimizer.step()
    last = method(data)
    assert last.loss < first.loss - 0.1
    assert last.metrics["pos_cos"] - last.metrics["neg_cos"] > first.metrics["pos_cos"] - first.metrics["neg_cos"]


def test_smaller_views_pass_the_backbone_separately_and_the_projector_with_the_others() -> None:
    method = build()
    sizes, rows = [], []
    method.backbone.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape)))
    method.projector.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    step = method(batch(8, 8, 4, 4))
    assert sizes == [(16, 3, 8, 8), (16, 3, 4, 4)]
    assert rows == [32]
    step.loss.backward()
    assert torch.isfinite(step.loss)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(("name", "sigma"), [("dcl", None), ("dclw", 0.7)])
def test_the_decoupled_losses_compare_the_same_embeddings(name: str, sigma: float | None, views: int) -> None:
    method, data = build(loss=name, **({} if sigma is None else {"sigma": sigma})), batch(*[4] * views)
    step = method(data)
    together = method.backbone(torch.cat([view.image for view in data.views])).pooled
    z = torch.stack(method.projector(together).chunk(views), dim=1)
    torch.testing.assert_close(step.loss, dcl(z, 0.2, sigma))
    assert ("contrast_top1" in step.metrics) == (views == 2)
    assert method.chance_loss(8) == pytest.approx(dcl(torch.ones(8, 2, 3), 0.2, sigma).item())


def test_the_decoupled_losses_have_their_own_temperature() -> None:
    assert [SimCLROptions.parse({"loss": loss}).temperature for loss in ("nt_xent", "dcl", "dclw")] == [0.5, 0.1, 0.1]
    assert SimCLROptions.parse({"loss": "dcl", "temperature": 0.2}).temperature == 0.2
    with pytest.raises(ValidationError, match="sigma is for loss 'dclw', and loss is 'dcl'"):
        SimCLROptions.parse({"loss": "dcl", "sigma": 1.0})
