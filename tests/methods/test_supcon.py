"""SupCon: labels decide who attracts whom, and without them there is no such method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.method import Batch, RunInfo, View
from sslcli.losses import nt_xent, sup_con
from sslcli.methods.supcon import SupCon, SupConOptions
from sslcli.training.setup import build
from sslcli.training.train import train

RUN = RunInfo(10, 5, 2, 6, 1, DataInfo("test", 3, (16, 16), (0.5,) * 3, (0.25,) * 3, ("a", "b", "c")))
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def supcon(**options: object) -> SupCon:
    torch.manual_seed(0)
    backbone = ResNet18(ResNetOptions(stem="small", width=4, zero_init_residual=False))
    return SupCon(backbone, SupConOptions.parse({"projector": {"output_dim": 8}, **options}), RUN)


def batch(*sizes: int, labels: Tensor | None = LABELS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = [View(torch.randn(6, 3, size, size, generator=generator)) for size in sizes or (16, 16)]
    return Batch(views, labels, torch.arange(6), {})


def projections(method: SupCon, given: Batch) -> Tensor:
    z = method.projector(method.backbone(torch.cat([view.image for view in given.views])).pooled)
    return torch.stack(z.chunk(len(given.views)), dim=1)


@pytest.mark.parametrize("contrast", ["all", "one"])
def test_the_loss_is_sup_con_of_the_projections_with_the_options_values(contrast: str) -> None:
    method, given = supcon(temperature=0.3, base_temperature=0.2, contrast=contrast), batch()
    torch.testing.assert_close(method(given).loss, sup_con(projections(method, given), LABELS, 0.3, 0.2, contrast))


def test_the_labels_decide_and_not_the_images_alone() -> None:
    method = supcon()
    assert abs(method(batch()).loss - method(batch(labels=LABELS.roll(1))).loss) > 1e-3


def test_supcon_is_nt_xent_where_each_image_is_its_own_class() -> None:
    method, given = supcon(temperature=0.2, base_temperature=0.2), batch(labels=torch.arange(6))
    z = projections(method, given)
    torch.testing.assert_close(method(given).loss, nt_xent(z[:, 0], z[:, 1], 0.2))


def test_supcon_normalizes_its_embeddings() -> None:
    method, given = supcon(), batch()
    before = method(given).loss
    with torch.no_grad():
        method.projector[-1].weight *= 50  # the last norm's scale: longer embeddings in the same directions
    torch.testing.assert_close(method(given).loss, before)


def test_supcon_is_not_nan_for_a_class_seen_once() -> None:
    for contrast in ("all", "one"):
        method = supcon(contrast=contrast)
        step = method(batch(labels=torch.arange(6)))
        step.loss.backward()
        assert torch.isfinite(step.loss)
        assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters())


def test_cosines_are_those_of_classes() -> None:
    one_class = supcon()(batch(labels=torch.zeros(6, dtype=torch.int64))).metrics
    assert set(one_class) == {"pos_cos", "neg_cos"}
    assert one_class["neg_cos"].item() == 0  # a batch of one class has no negative pair
    assert supcon()(batch()).metrics["neg_cos"].item() != 0


def test_three_views_and_smaller_ones_are_taken_together() -> None:
    method = supcon()
    given = batch(16, 16, 16)
    torch.testing.assert_close(method(given).loss, sup_con(projections(method, given), LABELS, 0.1, 0.07))
    seen: list[tuple[int, ...]] = []
    method.backbone.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    step = method(batch(16, 16, 8, 8))
    assert seen == [(12, 3, 16, 16), (12, 3, 8, 8)]
    assert step.features.shape == (6, 32)
    assert torch.isfinite(step.loss)


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="supcon needs labels"):
        supcon()(batch(labels=None))


@pytest.mark.parametrize("sizes", [(16,), (16, 8)])
def test_fewer_than_two_views_of_the_largest_size_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="supcon needs 2 or more views of the first one's size, and there are 1"):
        supcon()(batch(*sizes))


def test_a_single_view_is_refused_with_the_config(tiny) -> None:
    with pytest.raises(ConfigError, match="'supcon' needs at least 2 views of an image, not 1"):
        tiny("method={name: supcon}", "views=[{count: 1}]")


def test_the_recipe_and_the_defaults_are_the_paper_s() -> None:
    assert SupCon.recipe(SupConOptions(), 32) == {"preset": "supcon"}
    assert SupCon.needs_labels
    assert (SupConOptions().temperature, SupConOptions().base_temperature) == (0.1, 0.07)
    optimizer = SupCon.defaults["optimizer"]
    assert (optimizer["name"], optimizer["lr"], optimizer["momentum"]) == ("sgd", 0.05, 0.9)
    assert (optimizer["weight_decay"], optimizer["exclude"]) == (1e-4, [])


def test_every_parameter_decays_by_default(tiny) -> None:
    session = build(tiny("method={name: supcon, projector: {output_dim: 8}}", "optimizer=null"))
    assert {group["weight_decay"] for group in session.optimizer.param_groups} == {1e-4}


def test_a_run_trains_and_data_without_labels_end_it_before_it_begins(tiny, tmp_path: Path) -> None:
    config = tiny("method={name: supcon, projector: {output_dim: 8}}", "training.max_steps=2")
    assert train(config, tmp_path / "run", tell=lambda line: None).step == 2
    images = tmp_path / "images"
    images.mkdir()
    from torchvision.io import write_png

    for number in range(8):
        write_png(torch.full((3, 16, 16), number, dtype=torch.uint8), str(images / f"{number}.png"))
    bare = tiny("method={name: supcon}", f"data={{name: images, root: {images}}}", "views={size: 16}")
    with pytest.raises(UserError, match="'supcon' needs labels"):
        build(bare)
