"""SimCLR: one pass over both views, the right pairs, the right head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

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


def test_cosines_and_found_twins_are_reported_detached() -> None:
    given = batch()
    given.views[1] = given.views[0]
    metrics = simclr()(given).metrics
    assert set(metrics) == {"pos_cos", "neg_cos", "contrast_top1", "contrast_top5"}
    assert metrics["pos_cos"].item() == pytest.approx(1)
    assert metrics["contrast_top1"].item() == metrics["contrast_top5"].item() == 1
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


def test_more_than_two_views_are_compared_all_with_all() -> None:
    method, given = simclr(temperature=0.2), batch(3)
    step = method(given)
    z = method.projector(method.backbone(torch.cat([view.image for view in given.views])).pooled)
    assert step.loss.item() == pytest.approx(nt_xent_of_many(list(z.chunk(3)), 0.2), rel=1e-5)
    assert set(step.metrics) == {"pos_cos", "neg_cos"}
    torch.testing.assert_close(step.features, method.backbone(given.views[0].image).pooled)


def nt_xent_of_many(views: list[Tensor], temperature: float) -> float:
    """−log of the softmax at a positive, the mean over an image's other views, then over all embeddings."""
    cosines = torch.nn.functional.normalize(torch.stack(views, dim=1).detach().double(), dim=2)  # N×V×E
    total = 0.0
    for n, image in enumerate(cosines):
        for v, anchor in enumerate(image):
            weights = (cosines @ anchor / temperature).exp()
            denominator = weights.sum() - weights[n, v]
            others = [-(weights[n, p] / denominator).log() for p in range(len(views)) if p != v]
            total += float(sum(others)) / len(others)
    return total / cosines.shape[0] / len(views)


def test_smaller_views_pass_the_backbone_apart_and_the_projector_with_the_others() -> None:
    torch.manual_seed(0)
    method = simclr(ResNet18(ResNetOptions(stem="small", width=4)), projector={"output_dim": 8})
    given = batch(size=16)
    given.views += batch(2, size=8).views
    sizes, rows = [], []
    method.backbone.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape)))
    method.projector.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    step = method(given)
    assert sizes == [(12, 3, 16, 16), (12, 3, 8, 8)]
    assert rows == [24]
    assert step.features.shape == (6, 32)
    step.loss.backward()
    assert torch.isfinite(step.loss)


@pytest.mark.slow
def test_forward_over_views_of_two_sizes_is_one_graph() -> None:
    graphs = CompileCounter()
    method = simclr(ResNet18(ResNetOptions(stem="small", width=4)), projector={"output_dim": 8})
    given = batch(size=16)
    given.views += batch(2, size=8).views
    method.compile(fullgraph=True, dynamic=False, backend=graphs)
    for _ in range(2):
        method(given).loss.backward()
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((8,), "simclr needs 2 or more views of the first one's size, and there are 1"),
        ((16, 8), "simclr needs 2 or more views of the first one's size, and there are 1"),
        ((8, 8, 16), "simclr needs its largest views first, not sizes of 8, 8, 16"),
    ],
)
def test_views_that_it_cannot_work_with_are_refused(sizes: tuple[int, ...], said: str) -> None:
    given = batch()
    given.views = [batch(1, size=size).views[0] for size in sizes]
    with pytest.raises(UserError, match=f"^views: {said}$"):
        simclr()(given)


def test_the_recipe_is_simclr_s_and_the_defaults_are_the_paper_s() -> None:
    assert SimCLR.recipe(SimCLROptions(), 32) == {"preset": "simclr"}
    assert SimCLR.batch_coupled
    assert SimCLROptions().temperature == 0.5
    assert SimCLR.defaults["optimizer"] == {
        "name": "lars_simclr",
        "lr": 0.3,
        "weight_decay": 1e-6,
        "scale_lr": "batch/256",
    }
