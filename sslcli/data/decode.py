"""An image file → uint8 tensor: JPEG, PNG, WebP, BMP, TIFF, PPM of any color mode, read by Pillow."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sslcli.contracts.errors import UnreadableImage

#: Lower case; folders are searched for these.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

#: Pillow knows more formats, some of which start other programs; those are not tried.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")

# Pillow warns about odd metadata and large images, once in every worker; unreadable files raise anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(
    path: str | os.PathLike[str], channels: int = 3, wanted: int | None = None, content: bytes | None = None
) -> Tensor:
    """Reads an image.

    EXIF rotation is undone, transparency is composited on white, CMYK is converted to RGB as Pillow does it without a
    profile. Of 16-bit values the higher byte is kept. Of several pages the first is read.

    Args:
        path: the file.
        channels: 3 for RGB, 1 for gray (ITU-R 601 luma).
        wanted: a JPEG whose sides are both at least twice (4, 8 times) this many pixels is decoded at a half (quarter,
            eighth) of its size, which is several times faster; each side stays at least `wanted`. None: full size.
        content: of the file, if it has been read already; `path` is then only a name for messages.

    Returns:
        (channels, H, W) uint8, in memory as H × W × channels.

    Raises:
        UnreadableImage: missing, not a regular file, empty, damaged, not an image, above Pillow's limit of 179 million
            pixels, too large for the memory, or with pixels that have no fixed range (floating point, 32-bit integers).
    """
    try:
        with _opened(path) if content is None else io.BytesIO(content) as file, _image(file) as image:
            if wanted is not None:
                image.draft(None, (wanted, wanted))
            image.load()
            with contextlib.suppress(Exception):  # damaged metadata is no reason to refuse good pixels
                ImageOps.exif_transpose(image, in_place=True)
            array = np.array(eight_bit(image, "RGB" if channels == 3 else "L"))
    except UnidentifiedImageError:
        empty = not os.path.getsize(path) if content is None and os.path.exists(path) else content == b""
        reason = "the file is empty" if empty else "not an image of a known format"
        raise UnreadableImage(str(path), reason) from None
    except MemoryError as error:
        raise UnreadableImage(str(path), "too large for the memory that is left") from error
    except OSError as error:
        raise UnreadableImage(str(path), _one_line(error.strerror or error)) from error
    except Exception as error:  # on damaged files Pillow raises struct, zlib, index, syntax errors, …
        raise UnreadableImage(str(path), _one_line(error) or type(error).__name__) from error
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)


def decoded_size(path: str | os.PathLike[str], wanted: int | None = None) -> tuple[int, int] | None:
    """Returns height and width of what `decode` makes of a file, by its header alone; None if that cannot be read.

    An orientation that a file has only after its pixels is missed: height and width are swapped then.
    """
    try:
        with _opened(path) as file, _image(file) as image:
            if wanted is not None:
                image.draft(None, (wanted, wanted))
            width, height = image.size
            turned = False
            with contextlib.suppress(Exception):
                # Not the PNG reader's own method, which decodes all pixels to look behind them.
                turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # `decode` reports it
        return None
    return (width, height) if turned else (height, width)


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file; of a pipe, opening alone would wait for whoever writes into it."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def _image(file: BinaryIO) -> Image.Image:
    """Opens an image, whose header is then read; ValueError if it has no pixels."""
    image = Image.open(file, formats=_FORMATS)
    if 0 in image.size:
        raise ValueError("the image has no pixels")
    return image


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """Returns an opened image as `RGB` or `L`, composited on white; ValueError for pixels without a fixed range."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 0xFFFF):
            raise ValueError("32-bit pixels, whose range is unknown; convert it to 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    if image.mode == "P" and mode == "L":
        image = image.convert("RGB")  # directly to gray, a palette's entries are rounded differently
    return image if image.mode == mode else image.convert(mode)


def highest_value(paths: Iterable[str | os.PathLike[str]]) -> int | None:
    """Returns the largest value in gray images of 16 bits; None if one of them is of another kind or unreadable."""
    highest = 0
    for path in paths:
        try:
            with _opened(path) as file, _image(file) as image:
                if not image.mode.startswith("I;16"):
                    return None
                highest = max(highest, int(np.asarray(image).max()))
        except Exception:  # `decode` reports it
            return None
    return highest


def most_unreadable(fraction: float, count: int) -> int:
    """Returns how many of so many images may be unreadable: at least one, unless the fraction is 0, so that a single
    damaged file in a small folder does not end a run."""
    return max(int(fraction * count), int(fraction > 0))
