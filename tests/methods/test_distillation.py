"""Distillation: its losses written out, what the teacher sees, the queue, other networks, and clear refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ConfigMaker
from method_helpers import DATA, RUN, make
from small_options import teacher
from torch import Tensor

from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.backbones.vit import ViTOptions, ViTTiny
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.method import Batch, Progress, View
from sslcli.methods.distillation import Distillation
from sslcli.runs.trained import load_trained
from sslcli.testing.stand_ins import SmallBackbone
from sslcli.training.setup import build

COUNT, SIDE = 6, 16
VIT = ViTOptions(patch_size=2, depth=1)


class Without(SmallBackbone):
    """A network that pools its map away."""

    def forward(self, x: Tensor, *arguments: Any, **more: Any) -> Features:
        return Features(super().forward(x).pooled)


def resnet() -> Backbone:
    return ResNet18(ResNetOptions(stem="small", width=4))


def distilling(backbone: Any = resnet, **options: Any) -> Distillation:
    run = RUN.__class__(10, 5, 2, COUNT, 1, DATA, (SIDE,))
    return make(Distillation, backbone=backbone, run=run, **{"teacher": teacher(), **options})


def batch(seed: int = 0, side: int = SIDE) -> Batch:
    images = torch.randn(COUNT, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return Batch([View(images)], None, torch.arange(COUNT), {})


def taught(x: Tensor) -> Features:
    """What the file's network returns for views that were normalized by the data's mean and std."""
    trained = load_trained(teacher())
    mean, std, own_mean, own_std = (
        torch.tensor(values).view(3, 1, 1) for values in (DATA.mean, DATA.std, trained.card.mean, trained.card.std)
    )
    with torch.no_grad():
        return trained.backbone((x * std + mean - own_mean) / own_std)


def test_the_pooled_loss_is_the_squared_distance_of_unit_vectors() -> None:
    method, images = distilling(), batch()
    s, t = method.projector(method.backbone(images.views[0].image).pooled), taught(images.views[0].image).pooled
    expected = sum(((a / a.norm() - b / b.norm()) ** 2).sum() for a, b in zip(s, t, strict=True)) / COUNT
    found = method(images)
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, 2 - 2 * found.metrics["pos_cos"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("student", [resnet, lambda: ViTTiny.build(VIT, 3, SIDE)], ids=["resnet", "vit"])
def test_the_loss_of_tokens_is_the_mean_squared_error_on_the_teachers_grid(student: Any) -> None:
    """The teacher's map has 2 × 2 places, as the ResNet's; the ViT has 8 × 8 patches."""
    method, images = distilling(student, tokens=2.0, pooled=0.0), batch()
    student_out, teacher_out = method.backbone(images.views[0].image), taught(images.views[0].image)
    assert teacher_out.grid == (2, 2)
    projected = method.token_projector(student_out.tokens).transpose(1, 2).unflatten(2, student_out.grid)
    resized = F.interpolate(projected, size=(2, 2), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    expected = sum(
        (resized[n, place, d] - teacher_out.tokens[n, place, d]) ** 2
        for n in range(COUNT) for place in range(4) for d in range(32)
    ) / (COUNT * 4 * 32)  # fmt: skip
    found = method(images)
    torch.testing.assert_close(found.metrics["tokens"], expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, 2 * expected, rtol=1e-4, atol=1e-5)
    assert not hasattr(method, "projector")


def test_the_queue_holds_the_teachers_embeddings_of_earlier_steps() -> None:
    method = distilling(queue_size=2 * COUNT)
    for step in range(2):
        carry = method(batch(step)).carry
        method.after_step([carry], Progress(step + 1, 10, 5))
    expected = torch.cat([F.normalize(taught(batch(step).views[0].image).pooled) for step in range(2)])
    torch.testing.assert_close(method.queue.keys, expected, rtol=1e-4, atol=1e-4)
    assert bool(method.queue.full())


def test_the_teacher_sees_the_view_at_its_own_size() -> None:
    method, images = distilling(teacher_size=24), batch()
    larger = F.interpolate(images.views[0].image, size=(24, 24), mode="bicubic", antialias=True)
    s = method.projector(method.backbone(images.views[0].image).pooled)
    expected = (2 - 2 * F.cosine_similarity(s, taught(larger).pooled)).mean()
    torch.testing.assert_close(method(images).loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"queue_size": 8}, {"tokens": 1.0, "pooled": 0.0}])
def test_a_student_learns_its_teacher(options: dict[str, Any]) -> None:
    method = distilling(**options)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(20):
        found = method(batch(step % 2))
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        method.after_step([found.carry], Progress(step + 1, 20, 5))
        losses.append(found.loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "{name: distillation}",
            r"method: teacher is missing: give a run or a backbone file, or the name of a backbone",
        ),
        ("{name: distillation, teacher: x, pooled: 0}", r"method: pooled and tokens are both 0: give one of the two"),
        (
            "{name: distillation, teacher: x, pooled: 0, tokens: 1, queue_size: 8}",
            r"method: queue_size is for the pooled",
        ),
    ],
)
def test_wrong_options_are_one_line(options: str, message: str, tiny: ConfigMaker) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(f"method={options}")


def test_a_teacher_that_does_not_exist_is_one_line_before_anything_is_written(tiny: ConfigMaker) -> None:
    with pytest.raises(UserError, match=r"^method\.teacher: gone\.safetensors: no such run or file$"):
        build(tiny("method={name: distillation, teacher: gone.safetensors}"))


def test_a_network_without_a_map_cannot_learn_tokens() -> None:
    with pytest.raises(
        UserError, match=r"^backbone: method\.tokens needs a map of features, which this network does not"
    ):
        distilling(lambda: Without(3, 16), tokens=1.0)
    distilling(lambda: Without(3, 16), queue_size=4)


def test_transformers_decay_more() -> None:
    """The published defaults of lightly-train's distillationv3: AdamW 5e-4 at batch 1536, by the square root."""
    options = Distillation.Options.parse({"teacher": "x"})
    for patch, decay in ((None, 1e-6), (16, 0.04)):
        optimizer = Distillation.defaults(options, BackboneSpec(8, patch_size=patch))["optimizer"]
        assert optimizer["weight_decay"] == decay
        assert optimizer["lr"] * 1536**0.5 == pytest.approx(5e-4)


def test_tokens_are_compared_in_full_precision_under_autocast() -> None:
    method, data, made = distilling(lambda: ViTTiny.build(VIT, 3, SIDE), pooled=0.0, tokens=1.0), batch(), []
    method.token_projector.register_forward_hook(lambda module, given, out: made.append(out.detach()))
    method.teacher.register_forward_hook(lambda module, given, out: made.append(out.tokens))
    with torch.autocast("cpu", torch.bfloat16):
        out = method(data)
    tokens, student = made
    assert student.dtype == torch.bfloat16
    side = round(tokens.shape[1] ** 0.5)
    found = F.interpolate(student.float().permute(0, 3, 1, 2), (side, side), mode="bilinear", align_corners=False)
    expected = F.mse_loss(found.flatten(2).transpose(1, 2), tokens.float())
    assert out.metrics["tokens"].item() == pytest.approx(expected.item(), rel=1e-5)
