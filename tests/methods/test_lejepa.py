"""LeJEPA: its two terms on the views' embeddings, its directions, its recipe, and that it does not collapse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import batch, make
from torch import Tensor

from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.method import DrawKeys
from sslcli.losses import gaussian_directions, sigreg
from sslcli.methods.lejepa import LeJEPA, LeJEPAOptions


def build(**options: Any) -> LeJEPA:
    return make(LeJEPA, **{"directions": 6, "projector": {"hidden_dim": 7, "output_dim": 5}, **options})


def embeddings(method: LeJEPA, images: list[Tensor]) -> Tensor:
    features = [method.backbone(x).pooled for x in images]
    return torch.stack([method.projector(each) for each in features])


@pytest.mark.parametrize("sizes", [(4, 4), (4, 4, 4), (8, 8, 4, 4)])
def test_the_loss_is_the_distance_to_the_global_mean_and_the_test(sizes: tuple[int, ...]) -> None:
    method, data = build(lambda_=0.3).eval(), batch(*sizes)
    out = method(data)
    z = embeddings(method, [view.image for view in data.views]).detach()
    count = sizes.count(sizes[0])
    distance = 0.0
    for n in range(8):
        center = sum(z[v, n] for v in range(count)) / count
        distance += sum(float((z[v, n] - center).square().mean()) for v in range(len(sizes)))
    expected = distance / 8 / len(sizes)
    test = sigreg(z, gaussian_directions(data.shared_uniform(30), 5)).item()
    assert out.metrics["prediction"].item() == pytest.approx(expected, rel=1e-5)
    assert out.metrics["sigreg"].item() == pytest.approx(test, rel=1e-5)
    assert out.loss.item() == pytest.approx(0.7 * expected + 0.3 * test, rel=1e-5)


def test_the_distance_is_computed_in_full_precision_under_autocast() -> None:
    method, data, made = build(), batch(4, 4), []
    method.projector.register_forward_hook(lambda module, given, out: made.append(out.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        out = method(data)
    z = torch.cat(made)
    assert z.dtype == torch.bfloat16
    z = z.view(2, 8, 5).float()
    assert out.metrics["prediction"].item() == pytest.approx((z - z.mean(dim=0)).square().mean().item(), rel=1e-5)


def test_directions_are_new_at_each_step_and_the_same_for_all_images_of_one() -> None:
    method = build().eval()

    def directions(step: int, seed: int) -> Tensor:
        data = batch(seed=seed)
        data.keys = DrawKeys(seed=3, step=step, positions=torch.arange(8) + 8 * seed)
        return method._directions(data, torch.zeros(2, 8, 5))

    assert torch.equal(directions(1, 1), directions(1, 2))
    assert not torch.equal(directions(1, 1), directions(2, 1))
    assert directions(1, 1).shape == (5, 6)


def test_the_gradient_reaches_every_view_and_the_center_too() -> None:
    """Nothing is detached: with the test's weight near zero, a small view pulls the global ones toward itself. (Without
    small views the center's gradient is zero.)"""
    method, data = build(lambda_=1e-9).eval(), batch(8, 8, 4)
    images = [view.image.requires_grad_() for view in data.views]
    found = torch.autograd.grad(method(data).loss, images)
    z = embeddings(method, images)
    center = (z[0] + z[1]) / 2
    torch.testing.assert_close(found, torch.autograd.grad((z - center).square().mean(), images), atol=1e-7, rtol=1e-4)
    held = torch.autograd.grad((embeddings(method, images) - center.detach()).square().mean(), images)
    assert (found[0] - held[0]).norm() > 0.1 * found[0].norm()


def test_training_brings_views_together_and_embeddings_to_a_gaussian() -> None:
    method = build(directions=32, projector={"hidden_dim": 16, "output_dim": 2})
    data = batch(count=32)
    for view in data.views:
        view.image += 2 * data.views[0].image.detach().clone()  # two views of one image
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    first = method(data).metrics
    for step in range(80):
        data.keys = DrawKeys(step=step)
        optimizer.zero_grad()
        out = method(data)
        out.loss.backward()
        optimizer.step()
    assert out.metrics["sigreg"] < 0.25 * first["sigreg"]
    z = embeddings(method, [view.image for view in data.views]).detach().flatten(0, 1)
    assert (z.std(dim=0) > 0.5).all()  # no collapse, by the test alone
    assert out.metrics["prediction"] < 0.5


def test_views_and_decay_depend_on_the_network() -> None:
    options = LeJEPAOptions()
    vit, resnet = BackboneSpec(384, patch_size=16, size_multiple=16), BackboneSpec(512)
    alike = {"preset": "lejepa", "local_count": 0, "global_count": 4, "global_scale": [0.08, 1.0]}
    assert LeJEPA.recipe(options, 224, vit) == {"preset": "lejepa", "local_multiple": 16}
    assert LeJEPA.recipe(options, 224, resnet) == alike
    assert LeJEPA.recipe(options, 32, vit) == LeJEPA.recipe(options, 32, resnet) == {**alike, "blur": 0.0}
    assert [LeJEPA.defaults(options, spec)["optimizer"]["weight_decay"] for spec in (vit, resnet)] == [0.05, 5e-4]
