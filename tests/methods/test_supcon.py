"""SupCon: labels decide which views attract each other, and without labels it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import batch as unlabeled
from method_helpers import layers, make
from torch import Tensor
from torchvision.io import write_png

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch
from sslcli.losses import nt_xent, sup_con
from sslcli.methods.supcon import SupCon
from sslcli.training.setup import build
from sslcli.training.train import train

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2])


def supcon(**options: Any) -> SupCon:
    return make(SupCon, projector={"output_dim": 8}, **options)


def batch(*sizes: int, labels: Tensor | None = LABELS) -> Batch:
    data = unlabeled(*sizes)
    data.labels = labels
    return data


def projections(method: SupCon, data: Batch) -> Tensor:
    z = method.projector(method.backbone(torch.cat([view.image for view in data.views])).pooled)
    return torch.stack(z.chunk(len(data.views)), dim=1)


@pytest.mark.parametrize("contrast", ["all", "one"])
@pytest.mark.parametrize("views", [2, 3])
def test_the_loss_is_sup_con_of_the_projections_with_the_options_values(contrast: str, views: int) -> None:
    method, data = supcon(temperature=0.3, base_temperature=0.2, contrast=contrast), batch(*[4] * views)
    torch.testing.assert_close(method(data).loss, sup_con(projections(method, data), LABELS, 0.3, 0.2, contrast))


def test_the_loss_depends_on_the_labels() -> None:
    method = supcon()
    assert abs(method(batch()).loss - method(batch(labels=LABELS.roll(1))).loss) > 1e-3


def test_supcon_is_nt_xent_where_each_image_is_its_own_class() -> None:
    method, data = supcon(temperature=0.2, base_temperature=0.2), batch(labels=torch.arange(8))
    z = projections(method, data)
    torch.testing.assert_close(method(data).loss, nt_xent(z[:, 0], z[:, 1], 0.2))


def test_supcon_normalizes_its_embeddings() -> None:
    method, data = supcon(), batch()
    before = method(data).loss
    with torch.no_grad():
        for parameter in method.projector[-1].parameters():  # longer embeddings in the same directions
            parameter *= 50
    torch.testing.assert_close(method(data).loss, before)


def test_features_are_scaled_to_length_one_before_the_projector_if_asked() -> None:
    """With one linear layer without bias: the head of the authors' ImageNet code (supcon/models.py)."""
    head = {"layers": 1, "output_dim": 8, "norm": "none", "last_bias": False}
    method = make(SupCon, projector=head, normalize_features=True, base_temperature=1.0)
    assert layers(method.projector) == "linear"
    data = batch()
    h = method.backbone(torch.cat([view.image for view in data.views])).pooled
    z = (h / h.norm(dim=1, keepdim=True)) @ method.projector[0].weight.T
    step = method(data)
    torch.testing.assert_close(step.loss, sup_con(torch.stack(z.chunk(2), dim=1), LABELS, 0.1, 1.0))
    torch.testing.assert_close(step.features, h[:8])  # what is evaluated is not scaled


def test_supcon_is_not_nan_for_a_class_seen_once() -> None:
    for contrast in ("all", "one"):
        method = supcon(contrast=contrast)
        step = method(batch(labels=torch.arange(8)))
        step.loss.backward()
        assert torch.isfinite(step.loss)
        assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters())


def test_cosines_are_those_of_classes() -> None:
    one_class = supcon()(batch(labels=torch.zeros(8, dtype=torch.int64))).metrics
    assert set(one_class) == {"pos_cos", "neg_cos"}
    assert one_class["neg_cos"].item() == 0  # a batch of one class has no negative pair
    assert supcon()(batch()).metrics["neg_cos"].item() != 0


def test_smaller_views_pass_the_backbone_separately() -> None:
    method, seen = supcon(), []
    method.backbone.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    assert torch.isfinite(method(batch(8, 8, 4, 4)).loss)
    assert seen == [(16, 3, 8, 8), (16, 3, 4, 4)]


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="supcon needs labels"):
        supcon()(batch(labels=None))


def test_every_parameter_decays_by_default(tiny) -> None:
    session = build(tiny("method={name: supcon, projector: {output_dim: 8}}", "optimizer=null"))
    assert {group["weight_decay"] for group in session.optimizer.param_groups} == {1e-4}


def test_a_run_trains_and_is_refused_before_it_starts_on_data_without_labels(tiny, tmp_path: Path) -> None:
    config = tiny("method={name: supcon, projector: {output_dim: 8}}", "training.max_steps=2")
    assert train(config, tmp_path / "run", tell=lambda line: None).step == 2
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        write_png(torch.full((3, 16, 16), number, dtype=torch.uint8), str(images / f"{number}.png"))
    bare = tiny("method={name: supcon}", f"data={{name: images, root: {images}}}", "views={size: 16}")
    with pytest.raises(UserError, match="'supcon' needs labels"):
        build(bare)
