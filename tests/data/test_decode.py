from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from sslcli.contracts.errors import UnreadableImage
from sslcli.data.decode import decode, decoded_size, most_unreadable

# Outside of tests, the module silences these itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SIZE = (12, 8)  # width, height


def ramp() -> np.ndarray:
    """(8, 12, 3): every pixel differs from its neighbors, so that a swapped axis or channel shows."""
    y, x = np.mgrid[0:8, 0:12]
    return np.stack([x * 20, y * 30, 255 - x * 10 - y * 10], 2).astype(np.uint8)


def expected(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def refusal(path: Path) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        decode(path)
    assert "\n" not in caught.value.reason
    assert caught.value.reason
    assert caught.value.path == str(path)
    return caught.value


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp"])
def test_lossless_formats_are_read_bitwise(tmp_path: Path, name: str) -> None:
    Image.fromarray(ramp()).save(tmp_path / name, lossless=True)
    image = decode(tmp_path / name)
    assert image.dtype == torch.uint8
    assert torch.equal(image, expected(ramp()))


def test_one_channel_is_the_luma(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", channels=1)
    assert image.shape == (1, 8, 12)
    luma = ramp().astype(float) @ np.array([0.299, 0.587, 0.114])
    assert float((image[0].double() - torch.from_numpy(luma)).abs().max()) <= 1


def test_a_jpeg_is_what_was_saved_up_to_its_losses(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(ramp()).resize((96, 64), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "a.JPG", "JPEG", quality=98, subsampling=0)
    error = decode(tmp_path / "a.JPG").int() - expected(smooth).int()
    assert int(error.abs().max()) < 12


def test_gray_jpeg_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(ramp()).convert("L").save(tmp_path / "a.jpg")
    image = decode(tmp_path / "a.jpg")
    assert image.shape == (3, 8, 12)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_becomes_rgb(tmp_path: Path, name: str) -> None:
    red = Image.new("RGB", SIZE, (250, 10, 20))
    red.convert("CMYK").save(tmp_path / name)
    assert decode(tmp_path / name).float().mean(dim=(1, 2)).tolist() == pytest.approx([250, 10, 20], abs=3)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_the_metadata_is_undone_as_by_pillow(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(ramp()).resize((96, 64), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / name, exif=exif, quality=98)
    with Image.open(tmp_path / name) as image:
        upright = expected(np.asarray(ImageOps.exif_transpose(image)))
    assert torch.equal(decode(tmp_path / name), upright)
    assert upright.shape[1:] == ((64, 96) if orientation < 5 else (96, 64))
    if name == "a.jpg":
        assert decoded_size(tmp_path / name) == upright.shape[1:]


def test_a_palette_is_looked_up_and_its_transparent_entry_composited_on_white(tmp_path: Path) -> None:
    quantized = Image.fromarray(ramp()).quantize(64)
    quantized.save(tmp_path / "a.png")
    assert torch.equal(decode(tmp_path / "a.png"), expected(np.asarray(quantized.convert("RGB"))))
    image = Image.new("P", SIZE, 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 6, 8))
    image.save(tmp_path / "b.png", transparency=0)
    pixels = decode(tmp_path / "b.png")
    assert pixels[:, 0, 0].tolist() == [200, 100, 50]
    assert pixels[:, 0, 11].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (200, 100, 0, 128)), ("LA", (100, 128))])
def test_half_transparent_pixels_are_half_white(tmp_path: Path, mode: str, color: tuple[int, ...]) -> None:
    Image.new(mode, SIZE, color).save(tmp_path / "a.png")
    solid = color[:3] if mode == "RGBA" else (color[0],) * 3
    half = [(value + 255) / 2 for value in solid]
    assert decode(tmp_path / "a.png")[:, 3, 3].tolist() == pytest.approx(half, abs=1.5)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_higher_byte_of_sixteen_bit_gray_is_kept(tmp_path: Path, name: str) -> None:
    values = (np.arange(96, dtype=np.uint16) * 680).reshape(8, 12)
    Image.fromarray(values).save(tmp_path / name)
    image = decode(tmp_path / name)
    assert torch.equal(image[1], torch.from_numpy((values >> 8).astype(np.uint8)))
    assert torch.equal(decode(tmp_path / name, channels=1)[0], image[0])


def test_a_bilevel_image_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(ramp()).convert("1").save(tmp_path / "a.png")
    assert set(decode(tmp_path / "a.png").unique().tolist()) == {0, 255}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not found", "not an image of a known format"),
        # a format that runs another program, which is not tried
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image of a known format"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_not_an_image_is_unreadable(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    assert refusal(tmp_path / "a.jpg").reason == reason
    assert decoded_size(tmp_path / "a.jpg") is None


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tif"])
def test_a_truncated_file_is_unreadable(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    Image.fromarray(ramp()).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for position in draw.integers(0, len(content), 4):
            damaged[position] ^= 1 << int(draw.integers(8))
        (tmp_path / name).write_bytes(bytes(damaged))
        with suppress(UnreadableImage):  # anything else would end a run
            assert decode(tmp_path / name).shape[0] == 3


def test_a_decompression_bomb_is_unreadable(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    assert os.path.getsize(tmp_path / "a.png") < 100_000
    assert "decompression bomb" in refusal(tmp_path / "a.png").reason


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12)).save(tmp_path / "a.tif")
    assert "floating-point" in refusal(tmp_path / "a.tif").reason
    Image.fromarray(np.full((8, 12), 1 << 20, dtype=np.int32)).save(tmp_path / "b.tif")
    assert "32-bit" in refusal(tmp_path / "b.tif").reason


@pytest.mark.parametrize(
    ("wanted", "shape"), [(None, (400, 600)), (201, (400, 600)), (200, (200, 300)), (60, (100, 150))]
)
def test_a_large_jpeg_is_decoded_at_a_size_not_below_what_is_wanted(
    tmp_path: Path, wanted: int | None, shape: tuple[int, int]
) -> None:
    Image.fromarray(ramp()).resize((600, 400), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    image = decode(tmp_path / "a.jpg", wanted=wanted)
    assert image.shape == (3, *shape)
    full = decode(tmp_path / "a.jpg").float()
    small = torch.nn.functional.interpolate(full[None], shape, mode="area")[0]
    assert float((image.float() - small).abs().mean()) < 1.5


def test_images_can_be_written_to(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    decode(tmp_path / "a.png").add_(1)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "a.ppm"])
@pytest.mark.parametrize("wanted", [None, 30, 64])
def test_the_size_from_the_header_is_that_of_what_is_decoded(tmp_path: Path, name: str, wanted: int | None) -> None:
    Image.fromarray(ramp()).resize((123, 97)).save(tmp_path / name)
    assert decoded_size(tmp_path / name, wanted) == decode(tmp_path / name, wanted=wanted).shape[1:]


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(ramp()).save(tmp_path / "plain.png")
    Image.fromarray(ramp()).save(tmp_path / "turned.png", exif=turned)
    monkeypatch.setattr(PngImageFile, "load", None)
    assert decoded_size(tmp_path / "plain.png") == (8, 12)
    assert decoded_size(tmp_path / "turned.png") == (12, 8)


@pytest.mark.parametrize(
    ("fraction", "count", "most"), [(0.0, 5, 0), (0.01, 5, 1), (0.01, 199, 1), (0.01, 200, 2), (0.5, 8, 4), (1.0, 3, 3)]
)
def test_one_image_may_be_unreadable_in_a_small_folder(fraction: float, count: int, most: int) -> None:
    assert most_unreadable(fraction, count) == most
