"""Checks of view operations and presets."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.views import Operation, Parameters, Preset
from sslcli.randomness import uniform
from sslcli.views.pipeline import ViewMaker

from .common import check_options, equal, require
from .stand_ins import MEAN, STD, pixels

#: Enough samples that one with a small probability is among them.
SAMPLES = 64
#: Height and width of what a geometric operation gets: not square, and not the view's size.
SOURCE = (21, 26)


def check_operation(cls: type[Operation], options: Mapping[str, Any] | None = None, *, size: int = 16) -> None:
    """Checks shapes, types and ranges, one draw for each sample, and that nothing else decides the result.

    Args:
        cls: the class.
        options: plain data with which it does something to one image in twenty at least.
        size: side of the view in pixels.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed = check_options(cls, options)
    channels = cls.channels
    require(
        channels is None or (isinstance(channels, frozenset) and bool(channels)),
        f"{cls.__name__}.channels must be None or a frozenset of channel counts",
    )
    operation = cls(parsed, size)
    state = torch.get_rng_state()
    for count in sorted(channels or {1, 3, 4}):
        images = _images(operation, count)
        draws = _draws(operation, images)
        _check_parameters(operation, images, draws)
        parameters = operation.parameters(draws, _sizes(images))
        try:
            operation.apply(images.clone(), parameters)
        except (RuntimeError, IndexError, ValueError) as error:
            raise AssertionError(
                f"{cls.__name__} fails on images with {count} channels ({error}); say in `channels` which it can do"
            ) from error
        _check_apply(operation, images, parameters)
    require(
        equal(state, torch.get_rng_state()),
        f"{cls.__name__} draws from torch's generator; all chance must come from `uniform`",
    )
    _check_each_sample(operation, sorted(channels or {3})[0])
    side = operation.source_side()
    require(
        side is None or (cls.geometric and isinstance(side, int) and side > 0),
        f"{cls.__name__}.source_side must return None or, for a geometric operation, a side in pixels, not {side!r}",
    )
    if cls.geometric:
        _check_apply_one(operation, sorted(channels or {3})[0])


def check_preset(
    cls: type[Preset], options: Mapping[str, Any] | None = None, *, sizes: tuple[int, ...] = (32,)
) -> None:
    """Checks that a preset's views can be resolved and made.

    Args:
        cls: the class.
        options: plain data.
        sizes: sides in pixels to ask it for.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label = check_options(cls, options), cls.__name__
    for size in sizes:
        views = cls.views(parsed, size)
        require(isinstance(views, list) and bool(views), f"{label}.views must return a list of views")
        require(cls.views(parsed, size) == views, f"{label}.views returns something else each time")
        problems = Problems(Document({}, {(): f"{label}.views"}))
        specs = resolve_views(views, {}, size, problems)
        require(not problems.lines, f"{label}.views cannot be resolved: {'; '.join(problems.lines)}")
        require(cls.views(parsed, size) == views, f"{label}.views returns something that others change")
        maker = ViewMaker(specs, 3, (MEAN,) * 3, (STD,) * 3, seed=0)
        images = pixels(2, 3, size + 5, size + 2)
        made = maker.apply([images], maker.draw(0, torch.arange(2), _sizes(images)))
        for view, side in zip(made, maker.sizes, strict=True):
            good = tuple(view.shape) == (2, 3, side, side) and bool(view.isfinite().all())
            require(good, f"{label}: a view of {side} px is {tuple(view.shape)}, or not finite")


def _images(operation: Operation, channels: int) -> Tensor:
    if operation.geometric:
        return pixels(SAMPLES, channels, *SOURCE)
    return pixels(SAMPLES, channels, operation.size, operation.size).float() / 255


def _sizes(images: Tensor) -> Tensor:
    return torch.tensor([images.shape[-2:]]).expand(len(images), 2)


def _draws(operation: Operation, images: Tensor) -> Tensor:
    return uniform(0, 0, torch.arange(len(images)), count=operation.draws)


def _row(parameters: Parameters, rows: Any) -> Parameters:
    return {name: value[rows] for name, value in parameters.items()}


def _check_parameters(operation: Operation, images: Tensor, draws: Tensor) -> None:
    label, given = type(operation).__name__, draws.clone()
    found = operation.parameters(draws, _sizes(images))
    require(equal(given, draws), f"{label}.parameters changes the numbers that it was given")
    for name, value in found.items():
        require(
            isinstance(value, Tensor) and value.device.type == "cpu" and value.shape[:1] == (len(images),),
            f"{label}.parameters: {name!r} must be a tensor on the CPU with one row per sample",
        )
    for name, value in operation.parameters(draws, _sizes(images)).items():
        require(equal(value, found[name]), f"{label}.parameters: {name!r} is another from the same numbers")
    for rows in (slice(0, 3), slice(3, None)):
        for name, value in operation.parameters(draws[rows], _sizes(images)[rows]).items():
            require(equal(value, found[name][rows]), f"{label}.parameters: {name!r} depends on the others in the batch")


def _check_apply(operation: Operation, images: Tensor, parameters: Parameters) -> None:
    label, size = type(operation).__name__, operation.size
    given, chances = images.clone(), {name: value.clone() for name, value in parameters.items()}
    made = operation.apply(images, parameters)
    shape = (len(images), images.shape[1], size, size)
    require(
        made.dtype == torch.float32 and tuple(made.shape) == shape,
        f"{label}.apply returns {made.dtype} {tuple(made.shape)}, not float32 {shape}",
    )
    low, high = float(made.min()), float(made.max())
    require(low >= -1e-6 and high <= 1 + 1e-6, f"{label}.apply returns values from {low:g} to {high:g}, not in [0, 1]")
    require(equal(given, images), f"{label}.apply changes the images that it was given")
    for name, value in parameters.items():
        require(equal(value, chances[name]), f"{label}.apply changes the parameter {name!r}")
    require(equal(operation.apply(images, parameters), made), f"{label}.apply is not a function of its arguments")
    for rows in (slice(0, 3), slice(5, 6)):
        alone = operation.apply(images[rows], _row(parameters, rows))
        require(
            torch.allclose(alone, made[rows], atol=1e-5), f"{label}.apply: a sample depends on the others in its batch"
        )
    copied: Operation = pickle.loads(pickle.dumps(operation))
    require(equal(copied.apply(images, parameters), made), f"{label} does another thing after pickling")


def _check_each_sample(operation: Operation, channels: int) -> None:
    if operation.draws == 0:
        return
    images = _images(operation, channels)[:1].expand(SAMPLES, -1, -1, -1).contiguous()
    made = operation.apply(images, operation.parameters(_draws(operation, images), _sizes(images)))
    require(
        bool((made != made[:1]).any()),
        f"{type(operation).__name__}: {SAMPLES} equal images come out alike; each sample needs a draw of its own "
        "(or options that do something)",
    )


def _check_apply_one(operation: Operation, channels: int) -> None:
    label, images = type(operation).__name__, _images(operation, channels)[:8]
    parameters = operation.parameters(_draws(operation, images), _sizes(images))
    whole = operation.apply(images, parameters)
    for place, image in enumerate(images):
        one = operation.apply_one(image, _row(parameters, place))
        require(
            one.dtype == torch.uint8 and tuple(one.shape) == (channels, operation.size, operation.size),
            f"{label}.apply_one returns {one.dtype} {tuple(one.shape)}, not uint8 (C, size, size)",
        )
        levels = float((one.float() - whole[place] * 255).abs().max())
        require(levels <= 2.0, f"{label}.apply_one is up to {levels:.1f} 8-bit levels away from apply")
