"""A picture of images and their views, as the method gets them: of `ssl preview`, and `views.png` of a run."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from sslcli.contracts.batch import Batch, DrawKeys, View
from sslcli.contracts.data import StreamDataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.source import SourceBatch
from sslcli.foreign import failures, reason
from sslcli.logs import shown
from sslcli.runs.layout import VIEWS
from sslcli.storage import atomic_path, check_output, writing

from .loop import Scheduled
from .setup import Session

log = logging.getLogger(__name__)

#: Side of the largest view in the picture, in pixels, at most; and of the text below it.
CELL, TEXT = 176, 11
#: More views of an image than these are left out.
MOST_VIEWS = 16
_GAP, _LINE = 10, 14
_PAPER, _INK, _PALE = "white", "#222222", "#666666"
#: What a picture that may be replaced says where it is from; that of a run may not.
PROGRAM = "ssl preview"


@dataclass
class Column:
    """One column of the picture.

    Attributes:
        title: above it.
        images: uint8 (C, H, W) each.
        notes: below each.
    """

    title: str
    images: list[Tensor]
    notes: list[str]


def columns_of(session: Session, count: int, step: int = 0, *, tell: bool = False) -> list[Column]:
    """Returns the first images of a step beside their views, by the run's own draws.

    Args:
        session: of the run.
        count: images at most.
        step: of the plan; a stream is only at its first.
        tell: warn of images that were replaced.

    Raises:
        UserError: a view cannot be made, the run has no such step, or it is a stream's and not the first.
        SslError: no image can be read.
        PluginError: a plugin's `note` or `visible_patches` fails.
    """
    if step >= session.info.total_steps:
        raise UserError(f"--step: {step}: the run has {session.info.total_steps:,} steps, and the first is 0")
    if step and isinstance(session.dataset, StreamDataset):
        raise UserError(f"--step: {step}: a stream is read from its beginning; leave the option out")
    found = session.source.first_images(step, count, CELL)
    maker, info = copy.copy(session.views.at(step)), session.info.data  # a copy is not compiled
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    if tell:
        for message in found.batch.replaced:
            log.warning(f"unreadable image replaced: {message}")
    names = [f"{name}, {w} x {h}" for name, (h, w) in zip(found.names, found.sizes.tolist(), strict=True)]
    columns = [Column("original", found.originals, names)]
    views = maker.make(found.batch)
    seen = _seen(session, found.batch, views, step)
    with failures("views: what an operation says of itself"):
        notes_of_all = maker.notes(found.batch, found.sizes)
    for number, (view, notes) in enumerate(zip(views, notes_of_all, strict=True)):
        pixels = ((view.cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        columns.append(Column(f"view {number + 1}, {maker.sizes[number]} px", [*pixels], notes))
        for name, (index, patches) in seen.items():
            if index == number:
                shares = [f"{share:.0%} of the patches" for share in patches.float().mean(dim=1).tolist()]
                columns.append(Column(f"view {number + 1}: {name}", [*_hidden(pixels, patches.cpu())], shares))
    return columns


def _seen(session: Session, batch: SourceBatch, views: list[Tensor], step: int) -> dict[str, tuple[int, Tensor]]:
    """Which patches the method sees of these views."""
    schedule = Scheduled(session.method.schedules(), step, session.device)
    keys = DrawKeys(session.config.seed, step, batch.epoch, batch.positions)
    devices = [session.device] if session.device.type == "cuda" else []
    name = f"method {session.config.method.name!r}: visible_patches"
    with failures(name), torch.no_grad(), torch.random.fork_rng(devices):
        given = Batch([View(view) for view in views], batch.labels, batch.index, schedule, keys)
        seen = session.method.visible_patches(given)
        for index, patches in seen.values():
            rows, columns = patches.shape
            if not 0 <= index < len(views) or rows != len(batch.index) or math.isqrt(columns) ** 2 != columns:
                raise ValueError(f"returned {rows} x {columns} patches of view {index}, for {len(batch.index)} images")
    return seen


def _hidden(images: Tensor, seen: Tensor) -> Tensor:
    """Images (N, C, S, S) uint8 in which all patches but those that are seen (N, L) are nearly white."""
    side = math.isqrt(seen.shape[1])
    there = seen.view(-1, 1, side, side).float()
    shown = torch.nn.functional.interpolate(there, images.shape[-2:], mode="nearest").bool()
    return images.where(shown, 225 + images // 9)


def drawn(columns: list[Column]) -> Image.Image:
    """Returns the picture: a row for each image. Views keep their sizes in proportion."""
    views = columns[1 : MOST_VIEWS + 1]
    left_out = len(columns) - 1 - len(views)
    scale = CELL / max(column.images[0].shape[-1] for column in views)
    scale = int(scale) if scale > 1 else scale  # whole pixels of small views
    font = ImageFont.load_default(TEXT)
    shown_columns = [columns[0], *views]
    texts = [[_wrapped(shown(note), font) for note in column.notes] for column in shown_columns]
    lines = [max(len(column[row]) for column in texts) for row in range(len(columns[0].images))]
    sizes = [
        [_fitting(each, None if column is columns[0] else scale) for each in column.images] for column in shown_columns
    ]
    heights = [max(column[row][1] for column in sizes) for row in range(len(lines))]
    width = len(shown_columns) * (CELL + _GAP) + _GAP
    height = 2 * _GAP + _LINE + sum(heights) + sum(lines) * _LINE + len(lines) * _GAP
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, column in enumerate(shown_columns):
        x, y = _GAP + number * (CELL + _GAP), _GAP
        more = f" (of {len(columns) - 1})" if left_out and column is shown_columns[-1] else ""
        draw.text((x, y), f"{column.title}{more}", _INK, font)
        y += _LINE + _GAP // 2
        for row, image in enumerate(column.images):
            picture.paste(_as_picture(image, sizes[number][row]), (x, y))
            for line, text in enumerate(texts[number][row]):
                draw.text((x, y + heights[row] + 2 + line * _LINE), text, _PALE, font)
            y += heights[row] + lines[row] * _LINE + _GAP
    return picture


def write(picture: Image.Image, path: Path, program: str = PROGRAM) -> None:
    """Writes a picture as a PNG file that says where it is from."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", program)
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=mark)


def write_views(session: Session, directory: Path) -> None:
    """Writes the picture of a run's first step into its directory; what keeps it from being written ends no run."""
    if count := session.config.training.preview:
        try:
            write(drawn(columns_of(session, count)), directory / VIEWS, "ssl train")
        except Exception as error:
            why = (error.strerror if isinstance(error, OSError) else None) or reason(error)
            log.warning(f"{directory / VIEWS}: cannot be written ({why}); training goes on")


def check_replaceable(path: Path, *, force: bool) -> None:
    """Raises UserError if a picture cannot be written there, or something else than a picture of ours is there."""
    if not path.is_file():
        check_output(path)
    elif not force and not _is_ours(path):
        raise UserError(f"{path}: `ssl preview` did not write it; choose another --output, or replace it with --force")
    else:
        with writing(path, "; choose another --output"):
            tempfile.TemporaryFile(dir=path.parent).close()


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as there:
            return bool(there.info.get("Software") == PROGRAM)
    except Exception:  # whatever else is there, in whatever condition
        return False


def _fitting(image: Tensor, scale: float | None) -> tuple[int, int]:
    """Width and height in the picture; without a scale the longer side is that of a cell."""
    height, width = image.shape[-2:]
    scale = CELL / max(height, width) if scale is None else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _as_picture(image: Tensor, size: tuple[int, int]) -> Image.Image:
    """RGB; of images with another number of channels than one or three the first ones."""
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    pixels = Image.fromarray(channels.permute(1, 2, 0).contiguous().numpy())
    larger = size[0] >= pixels.width
    return pixels.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines no wider than a cell, broken at spaces, or within a word that is longer."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= CELL:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > CELL:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]
