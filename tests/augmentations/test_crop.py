"""Crop and resize against a literal loop, torchvision in float64, PIL, and their own version for workers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from sslcli.augmentations.crop import Crop, crop_boxes
from sslcli.augmentations.resize import Resize
from sslcli.randomness import uniform

BOTH = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
#: Source height and width, side of the view: enlarging, shrinking, not square.
SHAPES = pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 56, 48), (150, 110, 24)])
MODES = {
    "bilinear": (v2.InterpolationMode.BILINEAR, Image.Resampling.BILINEAR),
    "bicubic": (v2.InterpolationMode.BICUBIC, Image.Resampling.BICUBIC),
}


def crop(size: int, **options: Any) -> Crop:
    return Crop(Crop.Options.parse(options), size)


def sources(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def sides(count: int, height: int, width: int) -> Tensor:
    return torch.tensor([[height, width]]).repeat(count, 1)


def boxes_of(parameters: dict[str, Tensor]) -> list[tuple[int, int, int, int]]:
    rows, columns = parameters["rows"].int().tolist(), parameters["columns"].int().tolist()
    return [(r[0], c[0], r[1], c[1]) for r, c in zip(rows, columns, strict=True)]


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.08, 1.0)), (40, 500, (0.5, 1.0)), (300, 20, (0.9, 1.0)), (3, 2, (0.01, 1.0))],
)
def test_crop_boxes_are_those_of_a_literal_loop_of_ten_attempts(height: int, width: int, scale: Any) -> None:
    numbers, ratio = uniform(3, torch.arange(300), count=22), (3 / 4, 4 / 3)
    expected = []
    for row in numbers.tolist():
        for attempt in range(10):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * row[attempt])
            low, high = math.log(ratio[0]), math.log(ratio[1])
            aspect = math.exp(low + (high - low) * row[10 + attempt])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                expected.append([math.floor(row[20] * (height - h + 1)), math.floor(row[21] * (width - w + 1)), h, w])
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(width / ratio[0])
            elif width / height > ratio[1]:
                w = round(height * ratio[1])
            expected.append([(height - h) // 2, (width - w) // 2, h, w])
    assert crop_boxes(numbers, sides(300, height, width), scale, ratio).int().tolist() == expected


def test_crop_boxes_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    count, image = 4000, torch.zeros(1, 48, 64)
    reference = v2.RandomResizedCrop(32)
    drawn = [reference.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[box["top"], box["left"], box["height"], box["width"]] for box in drawn])
    ours = crop_boxes(uniform(1, torch.arange(count), count=22), sides(count, 48, 64), (0.08, 1.0), (3 / 4, 4 / 3))
    for column in range(4):
        grid = torch.arange(65).view(-1, 1)
        gap = (theirs[:, column] <= grid).float().mean(1) - (ours[:, column] <= grid).float().mean(1)
        assert gap.abs().max() < 0.0436  # the Kolmogorov–Smirnov bound for two samples of 4000 at 0.1%


@BOTH
@SHAPES
def test_crop_is_torchvisions_in_float64_and_pils_to_one_8_bit_level(
    interpolation: str, height: int, width: int, size: int
) -> None:
    operation, images = crop(size, interpolation=interpolation), sources(12, height, width)
    parameters = operation.parameters(uniform(5, torch.arange(12), count=22), sides(12, height, width))
    ours = operation.apply(images, parameters)
    mode, pil_mode = MODES[interpolation]
    assert ours.dtype == torch.float32
    for image, view, (top, left, h, w) in zip(images, ours, boxes_of(parameters), strict=True):
        box = image[:, top : top + h, left : left + w].double() / 255
        if interpolation == "bilinear":
            expected = tv.resize(box, [size, size], interpolation=mode, antialias=True)
        else:  # PIL clips after each of its two passes
            wide = tv.resize(box, [h, size], interpolation=mode, antialias=True).clamp(0, 1)
            expected = tv.resize(wide, [size, size], interpolation=mode, antialias=True).clamp(0, 1)
        torch.testing.assert_close(view.double(), expected, atol=1e-5, rtol=0)
        cut = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
        pils = torch.from_numpy(np.array(cut.resize((size, size), pil_mode))).permute(2, 0, 1)
        assert ((view * 255).round() - pils.float()).abs().max() <= 1


@BOTH
@SHAPES
@pytest.mark.parametrize("cls", [Crop, Resize])
def test_workers_make_the_same_views_to_one_8_bit_level(
    cls: type[Crop] | type[Resize], interpolation: str, height: int, width: int, size: int
) -> None:
    operation = cls(cls.Options.parse({"interpolation": interpolation}), size)
    images = sources(12, height, width)
    parameters = operation.parameters(uniform(7, torch.arange(12), count=operation.draws), sides(12, height, width))
    batched = (operation.apply(images, parameters) * 255).round()
    for index, image in enumerate(images):
        one = operation.apply_one(image, {name: value[index] for name, value in parameters.items()})
        assert one.dtype == torch.uint8
        assert one.shape == (3, size, size)
        assert (one.float() - batched[index]).abs().max() <= 1


def test_a_mirrored_crop_is_the_crop_flipped() -> None:
    operation, images = crop(20), sources(4, 30, 26)
    parameters = operation.parameters(uniform(8, torch.arange(4), count=22), sides(4, 30, 26))
    plain = operation.apply(images, parameters)
    mirrored = operation.apply(images, {**parameters, "mirror": torch.tensor([True, False, True, False])})
    torch.testing.assert_close(mirrored[[0, 2]], plain[[0, 2]].flip(-1), atol=1e-5, rtol=0)
    assert torch.equal(mirrored[[1, 3]], plain[[1, 3]])


def test_every_sample_has_its_own_box() -> None:
    parameters = crop(32).parameters(uniform(9, torch.arange(64), count=22), sides(64, 200, 200))
    assert len(set(boxes_of(parameters))) == 64


@SHAPES
def test_resize_is_torchvisions_resize_and_center_crop(height: int, width: int, size: int) -> None:
    operation, images = Resize(Resize.Options(), size), sources(2, height, width)
    ours = operation.apply(images, operation.parameters(torch.zeros(2, 0), sides(2, height, width)))
    if (height, width) == (size, size):
        expected = images.double() / 255
    else:
        expected = tv.resize(images.double() / 255, [round(size * 256 / 224)], antialias=True)
        expected = tv.center_crop(expected, [size, size])
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)


def test_resize_does_not_change_an_image_of_the_views_size() -> None:
    operation, images = Resize(Resize.Options(interpolation="bicubic"), 32), sources(1, 32, 32)
    parameters = operation.parameters(torch.zeros(1, 0), sides(1, 32, 32))
    assert torch.equal((operation.apply(images, parameters) * 255).round().to(torch.uint8), images)
    assert torch.equal(operation.apply_one(images[0], {}), images[0])


@pytest.mark.parametrize("options", [{"scale": [0.5, 0.2]}, {"scale": [0.1, 1.5]}, {"ratio": [0, 1]}])
def test_invalid_ranges_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be"):
        Crop.Options.parse(options)
