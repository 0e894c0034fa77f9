"""Checks of view operations and presets."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.views import Operation, Parameters, Preset, ViewSpec
from sslcli.randomness import uniform
from sslcli.views.pipeline import ViewMaker

from .common import check_options, equal, kind, reported, require, require_is, require_same
from .stand_ins import MEAN, STD, pixels, sizes_of

#: Enough samples that one with a small probability is among them.
SAMPLES = 64
#: Height and width of a geometric operation's input: not square, and not the view's size.
SOURCE = (21, 26)


def check_operation(cls: type[Operation], options: Mapping[str, Any] | None = None, *, size: int = 16) -> None:
    """Checks shapes, types and ranges, separate random numbers per sample, and that the result depends on nothing else.

    Args:
        options: plain data with which it changes at least one image in twenty.
        size: side of the view in pixels.

    Raises:
        AssertionError: with what is wrong.
    """
    label, parsed, channels = cls.__name__, check_options(cls, options), cls.channels
    good = channels is None or (isinstance(channels, frozenset) and bool(channels))
    require(good, f"{label}.channels must be None or a frozenset of channel counts")
    operation = cls(parsed, size)
    state = torch.get_rng_state()
    for count in sorted(channels or {1, 3, 4}):
        images = _images(operation, count)
        draws = uniform(0, 0, torch.arange(SAMPLES), count=operation.draws)
        _check_parameters(operation, images, draws)
        parameters = operation.parameters(draws, sizes_of(images))
        with reported(f"{label} fails on images with {count} channels; list in `channels` which it supports"):
            operation.apply(images.clone(), parameters)
        _check_apply(operation, images, parameters)
        _check_drawn(operation, images, parameters)
        if cls.geometric:
            _check_apply_one(operation, images[:8], _rows(parameters, slice(0, 8)))
    drew = not equal(state, torch.get_rng_state())
    require(not drew, f"{label} draws from torch's generator; all randomness must come from `uniform`")
    _check_each_sample(operation, min(channels or {3}))
    side = operation.source_side()
    good = side is None or (cls.geometric and isinstance(side, int) and side > 0)
    require(good, f"{label}.source_side must return None, or a geometric operation's side in pixels, not {side!r}")


def check_views(label: str, section: Any, size: int) -> tuple[ViewSpec, ...]:
    """Returns the views that a `views:` section or list means; AssertionError with every problem in it."""
    problems = Problems(Document({}, {(): label}))
    specs = resolve_views(section, {}, size, problems)
    require(not problems.lines, f"{label} cannot be resolved: {'; '.join(problems.lines)}")
    return specs


def check_preset(
    cls: type[Preset], options: Mapping[str, Any] | None = None, *, sizes: tuple[int, ...] = (32,)
) -> None:
    """Checks that a preset's views can be resolved and made.

    Args:
        options: plain data.
        sizes: sides in pixels to request from it.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label = check_options(cls, options), cls.__name__
    for size in sizes:
        views = cls.views(parsed, size)
        require(isinstance(views, list) and views, f"{label}.views must return a list of views")
        require(cls.views(parsed, size) == views, f"{label}.views returns a different list in each call")
        specs = check_views(f"{label}.views", views, size)
        require(cls.views(parsed, size) == views, f"{label}.views returns an object that the caller can change")
        maker = ViewMaker(specs, 3, (MEAN,) * 3, (STD,) * 3, seed=0)
        images = pixels(2, 3, size + 5, size + 2)
        made = maker.apply([images], maker.draw(0, torch.arange(2), sizes_of(images)))
        for view, side in zip(made, maker.sizes, strict=True):
            good = tuple(view.shape) == (2, 3, side, side) and bool(view.isfinite().all())
            require(good, f"{label}: a view of {side} px is {tuple(view.shape)}, or not finite")


def _images(operation: Operation, channels: int) -> Tensor:
    if operation.geometric:
        return pixels(SAMPLES, channels, *SOURCE)
    return pixels(SAMPLES, channels, operation.size, operation.size).float() / 255


def _rows(parameters: Parameters, rows: Any) -> Parameters:
    return {name: value[rows] for name, value in parameters.items()}


def _check_parameters(operation: Operation, images: Tensor, draws: Tensor) -> None:
    label, given, sizes = f"{type(operation).__name__}.parameters", draws.clone(), sizes_of(images)
    found = operation.parameters(draws, sizes)
    require(equal(given, draws), f"{label} changes its input `uniform`")
    for name, value in found.items():
        good = isinstance(value, Tensor) and value.device.type == "cpu" and value.shape[:1] == (len(images),)
        require(good, f"{label}: {name!r} must be a tensor on the CPU with one row per sample")
    require_same(found, operation.parameters(draws, sizes), f"{label}: {{}} differs for the same numbers")
    for rows in (slice(0, 3), slice(3, None)):
        some = operation.parameters(draws[rows], sizes[rows])
        require_same(_rows(found, rows), some, f"{label}: {{}} depends on the others in the batch")


def _check_apply(operation: Operation, images: Tensor, parameters: Parameters) -> None:
    label, size = type(operation).__name__, operation.size
    given = {"images": images, **parameters}
    before = {name: tensor.clone() for name, tensor in given.items()}
    made = operation.apply(images, parameters)
    require_is(f"{label}.apply", kind(made), f"torch.float32 {(*images.shape[:2], size, size)}")
    low, high = float(made.min()), float(made.max())
    require(low >= -1e-6 and high <= 1 + 1e-6, f"{label}.apply returns values from {low:g} to {high:g}, not in [0, 1]")
    require_same(before, given, f"{label}.apply changes its input {{}}")
    require(equal(operation.apply(images, parameters), made), f"{label}.apply returns something else in each call")
    for rows in (slice(0, 3), slice(5, 6)):
        alone = operation.apply(images[rows], _rows(parameters, rows))
        close = torch.allclose(alone, made[rows], atol=1e-5)
        require(close, f"{label}.apply: a sample depends on the others in its batch")
    copied: Operation = pickle.loads(pickle.dumps(operation))
    require(equal(copied.apply(images, parameters), made), f"{label} gives another result after pickling")


def _check_drawn(operation: Operation, images: Tensor, parameters: Parameters) -> None:
    """Applies the operation without the options that only `parameters` may read."""
    label, options, drawn = type(operation).__name__, operation.options, operation.drawn
    known = type(options).model_fields.keys()
    require(drawn <= known, f"{label}.drawn names {', '.join(sorted(drawn - known))}, which is not an option")
    made, bare = operation.apply(images, parameters), copy.copy(operation)
    bare.options = SimpleNamespace(**{name: getattr(options, name) for name in known if name not in drawn})
    with reported(f"{label}.apply reads an option in `drawn`, which only `parameters` may read"):
        again = bare.apply(images, parameters)
    require(equal(again, made), f"{label}.apply returns something else without the options in `drawn`")


def _check_each_sample(operation: Operation, channels: int) -> None:
    if operation.draws == 0:
        return
    images = _images(operation, channels)[:1].expand(SAMPLES, -1, -1, -1).contiguous()
    draws = uniform(0, 0, torch.arange(SAMPLES), count=operation.draws)
    made = operation.apply(images, operation.parameters(draws, sizes_of(images)))
    hint = "each sample needs its own random numbers (or the options do nothing)"
    require((made != made[:1]).any(), f"{type(operation).__name__}: {SAMPLES} equal images give equal results; {hint}")


def _check_apply_one(operation: Operation, images: Tensor, parameters: Parameters) -> None:
    label, whole = type(operation).__name__, operation.apply(images, parameters)
    for index, image in enumerate(images):
        one = operation.apply_one(image, _rows(parameters, index))
        require_is(f"{label}.apply_one", kind(one), f"torch.uint8 {(len(image), operation.size, operation.size)}")
        levels = float((one.float() - whole[index] * 255).abs().max())
        require(levels <= 2.0, f"{label}.apply_one differs from apply by up to {levels:.1f} 8-bit levels")
