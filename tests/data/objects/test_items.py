"""What the items of a user's own dataset may be: images of the usual kinds, with or without a label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sslcli.data.objects.items import split_item, to_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB = torch.from_numpy(PIXELS).permute(2, 0, 1)
GRAY = RGB[0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(PIXELS), RGB),
        (PIXELS, RGB),
        (PIXELS[:, ::-1], RGB.flip(2)),
        (RGB, RGB),
        (RGB.float() / 255, RGB),
        (RGB.double().numpy().transpose(1, 2, 0) / 255, RGB),
        (RGB.half() / 255, RGB),
        (GRAY, GRAY.expand(3, -1, -1)),
        (GRAY[None], GRAY.expand(3, -1, -1)),
        (GRAY.numpy(), GRAY.expand(3, -1, -1)),
        (Image.fromarray(GRAY.numpy()), GRAY.expand(3, -1, -1)),
        (torch.cat([RGB, torch.full_like(RGB[:1], 255)]), RGB),
        (torch.cat([RGB, torch.zeros_like(RGB[:1])]), torch.full_like(RGB, 255)),
    ],
)
def test_an_image_of_any_usual_kind_becomes_the_same_pixels(image, expected) -> None:
    pixels = to_pixels(image, 3)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, expected)


def test_color_becomes_gray_as_pillow_does_it() -> None:
    luma = torch.from_numpy(np.array(Image.fromarray(PIXELS).convert("L")))[None]
    assert torch.equal(to_pixels(RGB, 1), luma)
    assert torch.equal(to_pixels(Image.fromarray(PIXELS), 1), luma)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((RGB.float() - 100) / 50, r"floating-point pixels are in \[0, 1\], these reach from -2 .* normalization"),
        (torch.full((3, 2, 2), float("nan")), "floating-point pixels are in"),
        (
            RGB.permute(1, 2, 0),
            r"a tensor is \(H, W\) or \(C, H, W\), with 1, 3 or 4 channels; this one is \(5, 7, 3\)",
        ),
        (PIXELS.transpose(2, 0, 1), r"an array is \(H, W\) or \(H, W, C\), with 1, 3 or 4 channels"),
        (RGB.long(), "pixels of type torch.int64 have no known range; give uint8"),
        (PIXELS.astype(np.uint16), "have no known range"),
        ("cat.png", "a str is not an image"),
    ],
)
def test_what_is_not_an_image_is_reported(image, message) -> None:
    with pytest.raises(ValueError, match=message):
        to_pixels(image, 3)


@pytest.mark.parametrize(
    ("item", "label"),
    [
        (PIXELS, None), ((PIXELS, 2), 2), ((PIXELS, torch.tensor(2), "more"), 2), ([PIXELS, np.int64(2)], 2),
        ((PIXELS, "cat"), "cat"), ({"img": PIXELS, "label": 2}, 2), ({"image": PIXELS}, None), ((PIXELS, -1), None),
        ((PIXELS, 0.5), None), ((PIXELS, torch.tensor([1, 2])), None), ((PIXELS, {"boxes": []}), None),
    ],
)  # fmt: skip
def test_labels_are_integers_or_names_next_to_the_image(item, label) -> None:
    image, found = split_item(item)
    assert image is PIXELS
    assert found == label
    assert type(found) is type(label)
