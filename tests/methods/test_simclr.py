"""SimCLR: one pass over both views, the right pairs, the right head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, RunInfo, View
from sslcli.losses import nt_xent
from sslcli.methods.simclr import SimCLR, SimCLROptions

RUN = RunInfo(10, 5, 2, 6, 1, DataInfo("test", 3, (8, 8), (0.5,) * 3, (0.25,) * 3))


class Recorder(Backbone):
    """A linear backbone that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=12)
        self.linear = nn.Linear(3 * 8 * 8, 12)
        self.seen: list[Tensor] = []

    @classmethod
    def build(cls, options: object, channels: int, image_size: int) -> Recorder:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        self.seen.append(x)
        return Features(self.linear(x.flatten(1)))


def simclr(backbone: Backbone | None = None, **options: object) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(backbone or Recorder(), SimCLROptions.parse(options), RUN)


def batch(views: int = 2, images: int = 6, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    made = [View(torch.randn(images, 3, size, size, generator=generator)) for _ in range(views)]
    return Batch(made, None, torch.arange(images), {})


def test_both_views_pass_the_backbone_together() -> None:
    method, given = simclr(), batch()
    method(given)
    (seen,) = method.backbone.seen
    assert torch.equal(seen, torch.cat([view.image for view in given.views]))


def test_the_loss_is_nt_xent_of_the_projections_at_the_option_s_temperature() -> None:
    method, given = simclr(temperature=0.2), batch()
    step = method(given)
    z = method.projector(method.backbone(torch.cat([view.image for view in given.views])).pooled)
    torch.testing.assert_close(step.loss, nt_xent(z[:6], z[6:], 0.2))
    assert abs(step.loss - nt_xent(z[:6], z[6:], 0.5)) > 1e-3


def test_features_are_the_first_view_s_and_carry_no_gradient() -> None:
    method, given = simclr(), batch()
    step = method(given)
    torch.testing.assert_close(step.features, method.backbone(given.views[0].image).pooled)
    assert not step.features.requires_grad


def test_pos_cos_and_neg_cos_are_reported_detached() -> None:
    given = batch()
    given.views[1] = given.views[0]
    metrics = simclr()(given).metrics
    assert set(metrics) == {"pos_cos", "neg_cos"}
    assert metrics["pos_cos"].item() == pytest.approx(1)
    assert metrics["neg_cos"].item() < 0.9
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("layers", [2, 3])
def test_the_projector_has_as_many_layers_as_asked_and_the_features_width(layers: int) -> None:
    linear = [part for part in simclr(projector={"layers": layers}).projector if isinstance(part, nn.Linear)]
    assert len(linear) == layers
    assert [part.out_features for part in linear] == [12] * (layers - 1) + [128]
    assert all(part.bias is None for part in linear)


def test_the_last_batch_norm_has_no_beta() -> None:
    *_, before, last = simclr().projector.modules()
    assert isinstance(before, nn.Linear)
    assert isinstance(last, nn.BatchNorm1d)
    assert last.bias is None


def test_a_head_without_norm_has_none() -> None:
    parts = list(simclr(projector={"norm": "none", "hidden_dim": 7, "output_dim": 5}).projector)
    assert [type(part).__name__ for part in parts] == ["Linear", "ReLU", "Linear"]
    assert (parts[0].out_features, parts[2].out_features, parts[2].bias) == (7, 5, None)


def test_gradients_reach_every_parameter_of_a_resnet() -> None:
    backbone = ResNet18(ResNetOptions(stem="small", width=4, zero_init_residual=False))
    method = simclr(backbone, projector={"output_dim": 8})
    method(batch(size=16)).loss.backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_few_steps_pull_the_views_of_an_image_together() -> None:
    method, given = simclr(), batch()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    first = method(given)
    for _ in range(20):
        optimizer.zero_grad()
        method(given).loss.backward()
        optimizer.step()
    last = method(given)
    assert last.loss < first.loss - 0.1
    assert last.metrics["pos_cos"] - last.metrics["neg_cos"] > first.metrics["pos_cos"] - first.metrics["neg_cos"]


@pytest.mark.parametrize("views", [1, 3])
def test_another_number_of_views_is_refused(views: int) -> None:
    with pytest.raises(UserError, match=f"exactly 2 views of an image, not {views}"):
        simclr()(batch(views))


def test_views_of_two_sizes_are_refused() -> None:
    given = batch()
    given.views[1] = batch(size=16).views[0]
    with pytest.raises(UserError, match="8 and 16 pixels"):
        simclr()(given)


def test_the_recipe_is_simclr_s_and_the_defaults_are_the_paper_s() -> None:
    assert SimCLR.recipe(SimCLROptions(), 32) == {"preset": "simclr"}
    assert SimCLR.batch_coupled
    assert SimCLROptions().temperature == 0.5
    assert SimCLR.defaults["optimizer"] == {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"}
