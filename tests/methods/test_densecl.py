"""DenseCL: both contrasts written out, which place is a place's positive, its queues, and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_helpers import RUN, Pooled, make
from torch import Tensor

from sslcli import plugins
from sslcli.backbones.vit import ViTOptions, ViTTiny
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Progress, View
from sslcli.methods import densecl as densecl_module
from sslcli.methods.densecl import DenseCL, DenseCLOptions
from sslcli.testing.stand_ins import SmallBackbone

COUNT, SIDE = 5, 16
SMALL: dict[str, Any] = {"queue_size": 7, "projector": {"hidden_dim": 6, "output_dim": 4}}


class Without(Pooled):
    """A network that pools its map away."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(super().forward(x).pooled)


def small() -> Backbone:
    return SmallBackbone(3, 8)


def vit() -> Backbone:
    return ViTTiny.build(ViTOptions(patch_size=4, depth=1), 3, SIDE)


def densecl(backbone: Any = small, **options: Any) -> DenseCL:
    run = RUN.__class__(10, 5, 2, COUNT, 1, RUN.data, (SIDE, SIDE))
    method: DenseCL = make(DenseCL, backbone=backbone, run=run, **{**SMALL, **options})
    return method.double().eval()  # batch norms that mix nothing: a pass can be repeated


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(COUNT, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Batch([View(view) for view in views], None, torch.arange(COUNT), {})


def unit(x: Tensor) -> Tensor:
    return x / (x @ x).sqrt()


def literal(method: DenseCL, views: Batch) -> Tensor:
    """The paper's equations 2 and 3, and its section 3.3, place by place."""
    tau, weight, copies = method.options.temperature, method.options.dense_weight, method.momentum_encoder
    mine, theirs = method.backbone(views.views[0].image), copies.backbone(views.views[1].image)
    q, k = method.projector(mine.pooled), copies.projector(theirs.pooled)
    single, dense = [], []
    for n in range(COUNT):
        ways = [unit(q[n]) @ unit(k[n]), *(unit(q[n]) @ unit(key) for key in method.queue.keys)]
        single.append(-torch.log_softmax(torch.stack(ways) / tau, dim=0)[0])
        for place in mine.tokens[n]:
            alike = [float(unit(place.detach()) @ unit(other)) for other in theirs.tokens[n]]
            r, t = method.dense_projector(place), copies.dense_projector(theirs.tokens[n, alike.index(max(alike))])
            ways = [unit(r) @ unit(t), *(unit(r) @ unit(key) for key in method.dense_queue.keys)]
            dense.append(-torch.log_softmax(torch.stack(ways) / tau, dim=0)[0])
    return (1 - weight) * sum(single) / len(single) + weight * sum(dense) / len(dense)


@pytest.mark.parametrize("backbone", [small, vit])
def test_the_loss_and_its_gradients_are_the_papers(backbone: Any) -> None:
    method = densecl(backbone, dense_weight=0.3)
    with torch.no_grad():  # keys from other weights than queries
        for parameter in method.momentum_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    found, expected = method(batch()).loss, literal(method, batch())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    mine, theirs = torch.autograd.grad(found, trained), torch.autograd.grad(expected, trained)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-8)


def test_a_places_positive_is_the_place_that_looks_like_it() -> None:
    """The second view is the first one mirrored: each place finds itself on the other side, and nothing is as near."""
    method, views = densecl(), batch()
    views.views[1] = View(views.views[0].image.flip(3))
    # Filters that are the same from both sides, so that a mirrored view has the mirrored map.
    with torch.no_grad():
        for layer in (method.backbone.layers[0], method.backbone.layers[3]):
            layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
            layer.stride, layer.padding = (1, 1), (1, 1)
        method.momentum_encoder.backbone.load_state_dict(method.backbone.state_dict())
        for layer in (method.momentum_encoder.backbone.layers[0], method.momentum_encoder.backbone.layers[3]):
            layer.stride, layer.padding = (1, 1), (1, 1)
    metrics = method(views).metrics
    torch.testing.assert_close(metrics["dense_pos_cos"], torch.ones((), dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_queues_take_the_keys_of_images_and_the_means_of_their_places() -> None:
    method, views = densecl(), batch()
    keys = method.momentum_encoder.backbone(views.views[1].image)
    whole = F.normalize(method.momentum_encoder.projector(keys.pooled))
    means = F.normalize(method.momentum_encoder.dense_projector(keys.tokens).mean(dim=1))
    before = method.queue.keys.clone(), method.dense_queue.keys.clone()
    carry = method(views).carry
    assert torch.equal(method.queue.keys, before[0])
    method.after_step([carry], Progress(1, 10, 5))
    for queue, expected, old in ((method.queue, whole, before[0]), (method.dense_queue, means, before[1])):
        torch.testing.assert_close(queue.keys[:COUNT], expected)
        assert torch.equal(queue.keys[COUNT:], old[COUNT:])


def test_places_are_pooled_to_a_grid_of_another_size() -> None:
    method, views = densecl(num_grid=2), batch()
    features = method.backbone(views.views[0].image)
    assert features.grid == (4, 4)
    expected = F.adaptive_avg_pool2d(features.tokens.transpose(1, 2).unflatten(2, (4, 4)), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(method._places(features), expected)
    method(views).loss.backward()
    assert all(parameter.grad is not None for parameter in method.dense_projector.parameters())


def test_places_are_chosen_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits the cosines of places that are much alike would be equal."""
    method, chosen = densecl().float(), []
    rows = densecl_module.unit_rows

    def watched(x: torch.Tensor) -> torch.Tensor:
        chosen.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return rows(x)

    monkeypatch.setattr(densecl_module, "unit_rows", watched)
    views = batch()
    for view in views.views:
        view.image = view.image.float()
    with torch.autocast("cpu", torch.bfloat16):
        method(views)
    assert [on for _, on in chosen[:2]] == [False, False]


def test_keys_have_no_gradient_and_heads_are_trained_by_their_own_contrast() -> None:
    method = densecl(dense_weight=1.0)
    method(batch()).loss.backward()
    assert all(parameter.grad is None for parameter in method.momentum_encoder.parameters())
    assert not any(parameter.grad.any() for parameter in method.projector.parameters())
    assert all(parameter.grad.any() for parameter in method.dense_projector.parameters())


def test_a_network_without_a_map_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^backbone: densecl needs a map of features, which this network does not have"
    ):
        densecl(Without)


def test_defaults_are_the_authors_and_for_transformers_those_of_moco_v3() -> None:
    options = DenseCLOptions()
    assert (options.queue_size, options.momentum, options.temperature, options.dense_weight) == (65536, 0.999, 0.2, 0.5)
    sgd = DenseCL.defaults(options, BackboneSpec(2048))["optimizer"]
    assert (sgd["name"], sgd["lr"], sgd["weight_decay"], sgd["exclude"]) == ("sgd", 0.03, 1e-4, [])
    moco_v3 = plugins.load("methods", "moco_v3")
    vit = BackboneSpec(384, patch_size=16)
    theirs = moco_v3.defaults(moco_v3.Options(), vit)
    assert {key: theirs[key] for key in ("optimizer", "schedule")} == DenseCL.defaults(options, vit)
