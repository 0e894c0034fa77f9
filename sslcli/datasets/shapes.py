"""Pictures that the program draws: a data set without a download, for a first run and for tests.

The class of a picture is the form and the texture of the one object in it. Everything else is random: colors,
position, size, rotation, background, clutter and noise. So raw pixels say little about the class, and the features of
an encoder that is invariant to crops and colors say much.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, Part
from sslcli.data.subset import stratified_choice
from sslcli.randomness import uniform

SIZES = {"train": 5000, "test": 1000}

#: Pixels drawn at once, so that the planes of a block fit a processor's cache.
BLOCK_PIXELS = 2**18
#: Small spots in the background.
SPOTS = 4
#: Amplitude of the grain, the same in every picture: otherwise two crops of a picture could be matched by it.
GRAIN = 0.06

#: Per channel of 5,000 training pictures of 32 pixels with seed 0, from `channel_statistics`.
MEAN = (0.500733, 0.500503, 0.500770)
STD = (0.186357, 0.186385, 0.186332)

#: Turns of the hue from a picture's center to its edge, and the range of its chroma.
TURNS = 0.6
CHROMA = (0.02, 0.1)

#: Uniform numbers per picture, besides the grain: for the object, the background and each spot.
_OBJECT, _BACKGROUND, _SPOT = 16, 6, 7
_DRAWS = _OBJECT + _BACKGROUND + SPOTS * _SPOT


# Signed distances in the object's own coordinates, where its radius is 1.


def _disk(u: Tensor, v: Tensor) -> Tensor:
    return (u * u + v * v).sqrt() - 0.9


def _cross(u: Tensor, v: Tensor) -> Tensor:
    lying = torch.maximum(u.abs() - 1, v.abs() - 0.38)
    standing = torch.maximum(u.abs() - 0.38, v.abs() - 1)
    return torch.minimum(lying, standing)


# Signed distances of patterns, in periods, shifted by a part of a period in each direction.


def _fold(s: Tensor) -> Tensor:
    """Distance to the nearest whole number: 0..0.5."""
    return (s - s.round()).abs()


def _plain(s: Tensor, t: Tensor, shift: Tensor, other: Tensor) -> Tensor:
    return torch.full_like(s, -1.0)


def _stripes(s: Tensor, t: Tensor, shift: Tensor, other: Tensor) -> Tensor:
    return _fold(s + shift) - 0.25


def _checker(s: Tensor, t: Tensor, shift: Tensor, other: Tensor) -> Tensor:
    a, b = _fold(s + shift) - 0.25, _fold(t + other) - 0.25
    return torch.maximum(torch.minimum(a, b), -torch.maximum(a, b))


def _dots(s: Tensor, t: Tensor, shift: Tensor, other: Tensor) -> Tensor:
    a, b = _fold(s + shift), _fold(t + other)
    return (a * a + b * b).sqrt() - 0.33


def _rings(s: Tensor, t: Tensor, shift: Tensor, other: Tensor) -> Tensor:
    return _fold((s * s + t * t).sqrt() + shift) - 0.25


#: By name: the signed distance of each form, and of each pattern.
FORMS = {"disk": _disk, "cross": _cross}
TEXTURES = {"plain": _plain, "stripes": _stripes, "checker": _checker, "dots": _dots, "rings": _rings}


class ShapesOptions(DatasetOptions):
    split: Literal["train", "test"] = "train"
    """`train` or `test`: different pictures of the same classes."""
    count: int | None = Field(default=None, ge=1)
    """How many pictures the split has; by default 5000 for training and 1000 for testing."""
    size: int = Field(default=32, ge=16, le=256)
    """Side of a picture in pixels."""
    seed: int = Field(default=0, ge=0)
    """Seed of the pictures; the run's own seed does not affect them."""


class Shapes(Dataset):
    """Picture i of a split is a function of (`seed`, split, i) alone; its class is i modulo the number of classes."""

    Options = ShapesOptions
    splits = ("train", "test")
    options: ShapesOptions
    labels: Tensor

    def __init__(self, options: ShapesOptions) -> None:
        super().__init__(options)
        classes = tuple(f"{texture} {form}" for form in FORMS for texture in TEXTURES)
        self.info = DataInfo("shapes", 3, (options.size, options.size), MEAN, STD, classes)
        labels = torch.arange(options.count or SIZES[options.split]) % len(classes)
        self._chosen = stratified_choice(labels, options.limit)
        self.labels = labels[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def image(self, index: int) -> Tensor:
        return self._draw(self._chosen[index : index + 1])[0]

    def images(self) -> Tensor:
        block = max(1, BLOCK_PIXELS // self.options.size**2)
        return torch.cat([self._draw(self._chosen[n : n + block]) for n in range(0, len(self), block)])

    def _draw(self, indices: Tensor) -> Tensor:
        return draw(self.options.seed, self.splits.index(self.options.split), indices, self.options.size)

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        labeled = super().labeled(options, part)
        if labeled is None or labeled.split == options.split:
            return labeled
        # `count` applies to the split that it was given for.
        return labeled.model_copy(update={"count": None})

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        return options.size if isinstance(options, ShapesOptions) else 32


def draw(seed: int, split: int, indices: Tensor, size: int) -> Tensor:
    """Draws pictures.

    Args:
        seed: of the data set.
        split: 0 for training, 1 for testing.
        indices: (N,) int64, which pictures of the split.
        size: side in pixels.

    Returns:
        (N, 3, size, size) uint8; the class of each is its index modulo the number of classes.
    """
    label = indices % (len(FORMS) * len(TEXTURES))
    numbers = uniform(seed, split, indices, 0, count=_DRAWS)
    thing, ground = numbers[:, :_OBJECT], numbers[:, _OBJECT : _OBJECT + _BACKGROUND]
    axis = (torch.arange(size, dtype=torch.float32) * 2 + 1) / size - 1  # pixel centers; the picture is -1..1
    y, x = axis.view(1, size, 1), axis.view(1, 1, size)
    canvas = _background(ground, x, y)
    for start in range(_OBJECT + _BACKGROUND, _DRAWS, _SPOT):
        canvas = _spot(canvas, numbers[:, start : start + _SPOT], x, y, 2 / size)
    canvas = _object(canvas, thing, label, x, y, 2 / size)
    grain = uniform(seed, split, indices, 1, count=size * size).float().view(-1, 1, size, size)
    canvas = canvas + (grain - 0.5) * (2 * GRAIN)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


def _between(unit: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * unit


def _planes(values: Tensor) -> Tensor:
    """(N,) float64 parameters → (N, 1, 1) float32. Angles and roots are computed in float64 before, so that after
    rounding to float32 the result does not depend on how many pictures are drawn at once."""
    return values.float().view(-1, 1, 1)


def _color(light: Tensor, unit: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """RGB of mean `light` (N, 1 or S, 1 or S) whose hue turns around the color wheel across the picture.

    So two crops of a picture share no color by which they could be matched.

    Args:
        unit: (N, 3) for chroma, direction and the hue at the center.
    """
    direction = 2 * math.pi * unit[:, 1]
    # cos(a + b) from cos and sin of a and b: computed per row and column, in float64, not per pixel
    across = 2 * math.pi * (unit[:, 2, None] + TURNS * torch.cos(direction)[:, None] * x.view(1, -1).double())
    down = 2 * math.pi * TURNS * torch.sin(direction)[:, None] * y.view(1, -1).double()
    cos_a, sin_a = across.cos().float().unsqueeze(1), across.sin().float().unsqueeze(1)
    cos_d, sin_d = down.cos().float().unsqueeze(2), down.sin().float().unsqueeze(2)
    cosine, sine = cos_a * cos_d - sin_a * sin_d, sin_a * cos_d + cos_a * sin_d
    chroma = _planes(_between(unit[:, 0], *CHROMA))
    third = 2 * math.pi / 3
    wheel = [chroma * (cosine * math.cos(k * third) - sine * math.sin(k * third)) for k in range(3)]
    return torch.stack([light + part for part in wheel], dim=1)


def _background(unit: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Light that changes from one side to the other."""
    angle = 2 * math.pi * unit[:, 0]
    ramp = (_planes(torch.cos(angle)) * x + _planes(torch.sin(angle)) * y) * 0.35 + 0.5
    first, second = _planes(_between(unit[:, 1], 0.25, 0.75)), _planes(_between(unit[:, 2], 0.25, 0.75))
    return _color(first + (second - first) * ramp, unit[:, 3:6], x, y)


def _spot(canvas: Tensor, unit: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """Draws a small round spot on the canvas."""
    color = _color(_planes(_between(unit[:, 6], 0.1, 0.9)), unit[:, :3], x, y)
    dx, dy = x - _planes(_between(unit[:, 3], -1, 1)), y - _planes(_between(unit[:, 4], -1, 1))
    distance = (dx * dx + dy * dy).sqrt() - _planes(_between(unit[:, 5], 0.05, 0.16))
    return canvas + (color - canvas) * _coverage(distance, pixel)


def _object(canvas: Tensor, unit: Tensor, label: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """Draws the object on the canvas: its form says where, its texture which of its two colors."""
    radius = _between(unit[:, 0], 0.5, 0.8)
    room = 1.1 - radius  # some of them extend beyond the edge a little
    dx = x - _planes(_between(unit[:, 1], -1, 1) * room)
    dy = y - _planes(_between(unit[:, 2], -1, 1) * room)
    angle = 2 * math.pi * unit[:, 3]
    cosine, sine, scale = _planes(torch.cos(angle)), _planes(torch.sin(angle)), _planes(radius)
    u, v = (dx * cosine + dy * sine) / scale, (dy * cosine - dx * sine) / scale

    distance, pattern = torch.empty_like(u), torch.empty_like(u)
    for index, form in enumerate(FORMS.values()):
        rows = label // len(TEXTURES) == index
        distance[rows] = form(u[rows], v[rows])
    period = _between(unit[:, 4], 0.46, 0.54)
    s, t = u / _planes(period), v / _planes(period)
    shift, other = _planes(unit[:, 5]), _planes(unit[:, 6])
    for index, texture in enumerate(TEXTURES.values()):
        rows = label % len(TEXTURES) == index
        pattern[rows] = texture(s[rows], t[rows], shift[rows], other[rows])

    bright = _between(unit[:, 7], 0.7, 0.95)
    dark = _between(unit[:, 8], 0.05, 0.3)
    swap = unit[:, 9] < 0.5
    front = _color(_planes(torch.where(swap, dark, bright)), unit[:, 10:13], x, y)
    back = _color(_planes(torch.where(swap, bright, dark)), unit[:, 13:16], x, y)
    share = _coverage(pattern * _planes(period * radius), pixel)
    color = back + (front - back) * share
    return canvas + (color - canvas) * _coverage(distance * scale, pixel)


def _coverage(distance: Tensor, pixel: float) -> Tensor:
    """Share of a pixel inside an outline at a signed distance (N, S, S), negative inside → (N, 1, S, S)."""
    return (0.5 - distance / pixel).clamp(0, 1).unsqueeze(1)
