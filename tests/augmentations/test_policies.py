"""AutoAugment, RandAugment and random erasing against PIL (through torchvision) and timm."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL.Image import Image
from timm.data import auto_augment as timms
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from sslcli.augmentations import selected
from sslcli.augmentations.autoaugment import POLICIES, AutoAugment
from sslcli.augmentations.levels import NUMBER, OPERATIONS, transform, warps
from sslcli.augmentations.policies import Posterize, parse_policy, values_of
from sslcli.augmentations.randaugment import RandAugment
from sslcli.augmentations.random_erasing import RandomErasing
from sslcli.contracts.views import Operation
from sslcli.randomness import uniform
from sslcli.testing.augmentations import check_views
from sslcli.views.pipeline import ViewMaker

SIZE, FILL = 16, (124, 116, 104)
#: Our names for timm's, whose variants differ in what a level means.
NAMES = {
    "AutoContrast": "autocontrast", "Equalize": "equalize", "Invert": "invert", "Rotate": "rotate", "Color": "color",
    "Posterize": "posterize", "PosterizeOriginal": "posterize", "Solarize": "solarize", "SolarizeAdd": "solarize_add",
    "Contrast": "contrast", "Brightness": "brightness", "Sharpness": "sharpness", "ShearX": "shear_x",
    "ShearY": "shear_y", "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
}  # fmt: skip


@pytest.fixture
def images() -> Tensor:
    """Noise, noise of few levels, and one gray, uint8."""
    found = torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found[1], found[2] = found[1] // 4 + 60, 7
    return found


def ours(images: Tensor, name: str, value: float, interpolation: str = "bilinear") -> Tensor:
    kind, values = torch.full((len(images),), NUMBER[name]), torch.full((len(images),), value, dtype=torch.float64)
    fill = torch.tensor(FILL).expand(len(images), 3).float()
    return transform(images.float(), kind, values.float(), warps(kind, values, SIZE), fill, interpolation)


def by_pil(images: Tensor, change: Callable[[Image], Image]) -> Tensor:
    return torch.stack([tv.pil_to_tensor(change(tv.to_pil_image(image))).float() for image in images])


@pytest.mark.parametrize(
    ("name", "value", "change"),
    [
        ("brightness", 1.7, lambda x: tv.adjust_brightness(x, 1.7)),
        ("brightness", 0.1, lambda x: tv.adjust_brightness(x, 0.1)),
        ("contrast", 0.37, lambda x: tv.adjust_contrast(x, 0.37)),
        ("contrast", 1.9, lambda x: tv.adjust_contrast(x, 1.9)),
        ("color", 1.6, lambda x: tv.adjust_saturation(x, 1.6)),
        ("color", 0.1, lambda x: tv.adjust_saturation(x, 0.1)),
        ("sharpness", 1.9, lambda x: tv.adjust_sharpness(x, 1.9)),
        ("sharpness", 0.1, lambda x: tv.adjust_sharpness(x, 0.1)),
        ("posterize", 3, lambda x: tv.posterize(x, 3)),
        ("posterize", 8, lambda x: tv.posterize(x, 8)),
        ("solarize", 77, lambda x: tv.solarize(x, 77)),
        ("solarize", 256, lambda x: x),
        ("solarize_add", 50, lambda x: timms.solarize_add(x, 50)),
        ("equalize", 0, tv.equalize),
        ("invert", 0, tv.invert),
    ],
)
def test_operations_on_levels_are_pils(images: Tensor, name: str, value: float, change: Callable[..., Image]) -> None:
    assert torch.equal(ours(images, name, value), by_pil(images, change))


def test_autocontrast_is_pils_but_for_rounding(images: Tensor) -> None:
    torch.testing.assert_close(ours(images, "autocontrast", 0), by_pil(images, tv.autocontrast), atol=1, rtol=0)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_warps_are_pils(images: Tensor, name: str, interpolation: str) -> None:
    how = {"interpolation": InterpolationMode(interpolation), "fill": list(FILL)}
    angle = math.degrees(math.atan(0.23))
    value, change = {
        "shear_x": (0.23, lambda x: tv.affine(x, 0, [0, 0], 1, [angle, 0], center=[0, 0], **how)),
        "shear_y": (-0.23, lambda x: tv.affine(x, 0, [0, 0], 1, [0, -angle], center=[0, 0], **how)),
        "translate_x": (3, lambda x: tv.affine(x, 0, [-3, 0], 1, [0, 0], **how)),
        "translate_y": (-2, lambda x: tv.affine(x, 0, [0, 2], 1, [0, 0], **how)),
        "rotate": (21, lambda x: tv.rotate(x, 21, **how)),
    }[name]
    found, expected = ours(images, name, value, interpolation), by_pil(images, change)
    torch.testing.assert_close(found, expected, atol=0 if interpolation == "nearest" else 1, rtol=0)
    assert (found != expected).float().mean() < 0.02
    assert not torch.equal(found, images.float())


@pytest.mark.parametrize(("name", "theirs"), [("imagenet", "original"), ("v0", "v0")])
def test_the_policies_are_timms(name: str, theirs: str) -> None:
    wanted = [
        [(NUMBER[NAMES[op.name]], op.prob, op.magnitude) for op in row] for row in timms.auto_augment_policy(theirs)
    ]
    assert torch.equal(parse_policy(POLICIES[name]), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(
    ("posterize", "special"),
    [("few", {}), ("original", {"Posterize": "PosterizeOriginal"}), ("increasing", None)],
)
def test_levels_mean_what_they_mean_in_timm(
    monkeypatch: pytest.MonkeyPatch, posterize: Posterize, special: dict[str, str] | None
) -> None:
    directions = {False: 0.1, True: 0.9}  # timm negates where the number is above .5
    for name in ("Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness", "Rotate",
                 "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):  # fmt: skip
        increasing = name + "Increasing" if name + "Increasing" in timms.LEVEL_TO_ARG else name
        theirs = increasing if special is None else special.get(name, name)
        for level in (0.0, 0.7, 3.0, 9.0, 9.6, 10.0):
            for negative, number in directions.items():
                monkeypatch.setattr(random, "random", lambda number=number: number)
                (wanted,) = timms.LEVEL_TO_ARG[theirs](level, {})
                kind = torch.tensor([[NUMBER[NAMES[name]]]])
                level_ = torch.tensor([[level]], dtype=torch.float64)
                found = values_of(kind, level_, torch.tensor([[negative]]), 100, posterize)
                assert found.item() == pytest.approx(wanted * (100 if "Translate" in name else 1)), (name, level)


def test_randaugment_draws_every_operation_equally_often_and_magnitudes_around_the_given_one() -> None:
    operation = RandAugment(RandAugment.Options(p=0.5), 32)
    found = operation.parameters(uniform(0, torch.arange(6000), count=operation.draws), torch.full((6000, 2), 32))
    counts = torch.bincount(found["kind"].flatten() + 1, minlength=16) / 12000
    assert counts[0] == pytest.approx(0.5, abs=0.02)
    assert counts[1:].tolist() == pytest.approx([1 / 30] * 15, abs=0.008)
    angles = found["value"][found["kind"] == NUMBER["rotate"]] / 3
    assert (angles > 0).float().mean() == pytest.approx(0.5, abs=0.08)
    assert angles.abs().mean() == pytest.approx(9, abs=0.1)
    assert angles.abs().std() == pytest.approx(0.5, abs=0.1)
    fixed = RandAugment(RandAugment.Options(magnitude_std=0.0, layers=3), 32)
    again = fixed.parameters(uniform(0, torch.arange(500), count=12), torch.full((500, 2), 32))
    assert again["kind"].shape == (500, 3)
    assert set(again["value"][again["kind"] == NUMBER["rotate"]].abs().tolist()) == {27.0}


@pytest.mark.parametrize("policy", ["imagenet", "v0"])
def test_autoaugment_draws_sub_policies_with_their_probabilities(policy: str) -> None:
    operation = AutoAugment(AutoAugment.Options.parse({"policy": policy}), 32)
    found = operation.parameters(uniform(1, torch.arange(8000), count=6), torch.full((8000, 2), 32))
    table = parse_policy(POLICIES[policy])
    for name in OPERATIONS:
        expected = (table[..., 1] * (table[..., 0] == NUMBER[name])).sum(0) / len(table)
        assert (found["kind"] == NUMBER[name]).float().mean(0).tolist() == pytest.approx(expected.tolist(), abs=0.015)


@pytest.mark.parametrize("cls", [AutoAugment, RandAugment, RandomErasing])
def test_samples_change_alike_by_index_and_by_mask(cls: type[Operation], monkeypatch: pytest.MonkeyPatch) -> None:
    operation = cls(cls.Options(), SIZE)
    images = torch.rand(40, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    parameters = operation.parameters(uniform(2, torch.arange(40), count=operation.draws), torch.full((40, 2), SIZE))
    by_index = operation.apply(images, parameters)
    monkeypatch.setattr(selected, "takes_subsets", lambda images: False)
    assert torch.equal(operation.apply(images, parameters), by_index)
    traced = torch.compile(operation.apply, backend="eager", fullgraph=True)  # without a branch on values
    assert torch.equal(traced(images, parameters), by_index)
    chosen = parameters["chosen"] if "chosen" in parameters else (parameters["kind"] >= 0).any(1)
    assert 0 < int(chosen.sum()) < 40
    assert torch.equal(by_index[~chosen], images[~chosen])


def test_an_erased_box_is_torchvisions(images: Tensor) -> None:
    operation = RandomErasing(RandomErasing.Options(p=1.0, fill=0.25), SIZE)
    given = images.float() / 255
    parameters = operation.parameters(uniform(3, torch.arange(4), count=operation.draws), torch.full((4, 2), SIZE))
    for image, made, (top, bottom, left, right) in zip(
        given, operation.apply(given, parameters), parameters["box"].tolist(), strict=True
    ):
        assert torch.equal(made, tv.erase(image, top, left, bottom - top, right - left, torch.tensor(0.25)))


def test_boxes_and_noise_are_distributed_as_asked() -> None:
    operation = RandomErasing(RandomErasing.Options(), 64)
    found = operation.parameters(uniform(4, torch.arange(4000), count=operation.draws), torch.full((4000, 2), 64))
    assert found["chosen"].float().mean() == pytest.approx(0.25, abs=0.02)
    top, bottom, left, right = found["box"].double().unbind(1)
    assert 0 <= min(top.min(), left.min()) <= max(bottom.max(), right.max()) <= 64
    area, ratio = (bottom - top) * (right - left) / 64**2, (bottom - top) / (right - left)
    assert 0.015 < area.min() < area.max() < 0.36
    assert 0.25 < ratio.min() < ratio.max() < 4
    assert ratio.log().mean() == pytest.approx(0, abs=0.05)
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    noise = operation._noise(torch.zeros(2, 3, 64, 64), torch.tensor([5, 6]))
    assert not torch.equal(noise[0], noise[1])
    assert noise.mean() == pytest.approx(0.45, abs=0.01)
    assert noise.std() == pytest.approx(0.225, abs=0.01)


def test_short_keys_put_them_in_order() -> None:
    view = {"flip": 0.5, "randaugment": {"magnitude": 5}, "random_erasing": 0.25, "jitter": 0.8, "autoaugment": 1.0}
    (spec,) = check_views("views", [view], 32)
    names = ["crop", "flip", "autoaugment", "randaugment", "jitter", "random_erasing"]
    assert [each.name for each in spec.operations] == names
    assert spec.operations[3].options["magnitude"] == 5
    assert spec.operations[5].options["p"] == 0.25


def test_views_with_other_numbers_of_operations_are_not_made_together() -> None:
    """Their parameters have other shapes; the views have to be those that each makes alone."""
    kinds = [[{"crop_scale": [1.0, 1.0], "randaugment": {"layers": layers}}] for layers in (1, 2)]
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def made(views: list[dict[str, Any]]) -> list[Tensor]:
        maker = ViewMaker(check_views("views", views, 16), 3, (0.5,) * 3, (0.5,) * 3, seed=0)
        return maker.apply([images], maker.draw(0, torch.arange(4), torch.full((4, 2), 16)))

    both = made([*kinds[0], *kinds[1]])
    assert torch.equal(both[0], made(kinds[0])[0])
    assert [view.shape for view in both] == [(4, 3, 16, 16)] * 2
