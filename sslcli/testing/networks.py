"""Checks of backbones and of providers of many."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneProvider, BackboneSpec, Features
from sslcli.runs import files

from .common import changed, check_options, equal, refusal, require, snapshot


def check_backbone(
    cls: type[Backbone],
    options: Mapping[str, Any] | None = None,
    *,
    channels: tuple[int, ...] = (3, 1),
    image_size: int = 32,
) -> None:
    """Checks shapes against the spec, determinism, copies, masks, and the way to a file and back.

    Args:
        cls: the class; its network should be small with these options.
        options: plain data.
        channels: image channels to build it for, in turn.
        image_size: side of the images in pixels.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed = check_options(cls, options)
    for count in channels:
        _check_build(cls, parsed, count, image_size)
    backbone = _build(cls, parsed, channels[0], image_size)
    images = torch.randn(4, channels[0], image_size, image_size, generator=torch.Generator().manual_seed(1))
    _check_evaluation(backbone, images)
    _check_mask(backbone, images)
    _check_copy(backbone, images)
    _check_export(cls, parsed, backbone, images)


def check_provider(cls: type[BackboneProvider]) -> None:
    """Checks that a provider lists names, returns a backbone class for one and raises KeyError for any other."""
    label, names = cls.__name__, cls.names()
    require(bool(names), f"{label}.names() is empty")
    require(len(set(names)) == len(names), f"{label}.names() has a name twice")
    found = cls.get(names[0])
    require(
        isinstance(found, type) and issubclass(found, Backbone),
        f"{label}.get({names[0]!r}) is no subclass of Backbone",
    )
    try:
        cls.get("no/such-backbone")
    except KeyError:
        return
    raise AssertionError(f"{label}.get of a name that it does not list must raise KeyError")


def _build(cls: type[Backbone], options: Any, channels: int, image_size: int, seed: int = 0) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls.build(options, channels, image_size)


def _check_build(cls: type[Backbone], options: Any, channels: int, image_size: int) -> None:
    label = cls.__name__
    backbone = _build(cls, options, channels, image_size)
    spec = getattr(backbone, "spec", None)
    require(isinstance(spec, BackboneSpec), f"{label}.spec is not set to a BackboneSpec by __init__")
    assert isinstance(spec, BackboneSpec)
    require(spec.channels == channels, f"{label}.spec.channels is {spec.channels} when built for {channels}")
    require(
        image_size >= spec.minimum_size and image_size % spec.size_multiple == 0,
        f"{label} takes sides from {spec.minimum_size} in multiples of {spec.size_multiple}; check it with such an "
        "image_size",
    )
    found = backbone.train()(torch.randn(2, channels, image_size, image_size))
    require(isinstance(found, Features), f"{label}.forward returns {type(found).__name__}, not Features")
    shape = tuple(found.pooled.shape)
    require(
        shape == (2, spec.feature_dim), f"{label}: pooled features are {shape}, the spec says (2, {spec.feature_dim})"
    )
    require(found.pooled.is_floating_point(), f"{label}: pooled features are {found.pooled.dtype}")
    require(found.pooled.requires_grad, f"{label}: no gradient can reach its weights from the pooled features")
    if found.tokens is not None:
        grid = found.grid
        require(grid is not None, f"{label} returns tokens without their grid")
        assert grid is not None
        length = grid[0] * grid[1]
        require(
            found.tokens.ndim == 3 and tuple(found.tokens.shape[:2]) == (2, length),
            f"{label}: tokens are {tuple(found.tokens.shape)}, a grid of {grid[0]}×{grid[1]} wants (2, {length}, D)",
        )
    first, second = (snapshot(_build(cls, options, channels, image_size)) for _ in range(2))
    require(not changed(first, second), f"{label}.build draws weights from something else than torch's generator")
    other = snapshot(_build(cls, options, channels, image_size, seed=1))
    require(bool(changed(first, other)), f"{label}.build makes the same weights whatever the seed")


def _pooled(backbone: Backbone, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Features = backbone(images)
    return found.pooled


def _check_evaluation(backbone: Backbone, images: Tensor) -> None:
    label = type(backbone).__name__
    backbone.eval()
    before = snapshot(backbone)
    first, second = _pooled(backbone, images), _pooled(backbone, images)
    require(bool(first.isfinite().all()), f"{label}: features in eval() are not all finite")
    require(equal(first, second), f"{label}: two passes over the same images in eval() differ")
    lost = changed(before, snapshot(backbone))
    require(not lost, f"{label}: a pass in eval() changes {lost[:1]}")
    alone = _pooled(backbone, images[:1])
    require(
        torch.allclose(alone, first[:1], rtol=1e-3, atol=1e-4),
        f"{label}: in eval() an image's features depend on the others in its batch",
    )


def _check_mask(backbone: Backbone, images: Tensor) -> None:
    with torch.no_grad():
        found: Features = backbone(images)
    if found.tokens is None:
        mask = torch.zeros(len(images), 4, dtype=torch.bool)
        said = refusal(lambda: backbone(images, mask))
        require(
            said is not None,
            f"{type(backbone).__name__} has no tokens, and must refuse a mask with a UserError of one line",
        )


def _check_copy(backbone: Backbone, images: Tensor) -> None:
    twin = copy.deepcopy(backbone)
    require(
        equal(_pooled(twin, images), _pooled(backbone, images)),
        f"{type(backbone).__name__}: a deep copy gives other features (momentum encoders are deep copies)",
    )


def _check_export(cls: type[Backbone], options: Any, backbone: Backbone, images: Tensor) -> None:
    label = cls.__name__
    exported = backbone.export_state()
    require(
        isinstance(exported, tuple) and len(exported) == 2,
        f"{label}.export_state must return the weights and the lines that load them",
    )
    state, lines = exported
    try:
        saved = files.snapshot(state)
    except ValueError as error:
        raise AssertionError(f"{label}.export_state cannot be written to a file: {error}") from error
    try:
        compile(lines, "export_state", "exec")
    except SyntaxError as error:
        raise AssertionError(f"{label}.export_state: the lines are no Python: {error}") from error
    fresh = _build(cls, options, backbone.spec.channels, images.shape[-1], seed=1).eval()
    fresh.import_state(dict(saved))
    require(
        equal(_pooled(fresh, images), _pooled(backbone, images)),
        f"{label}: import_state of what export_state returned gives other features",
    )
    fresh.load_state_dict(backbone.state_dict(), strict=True)
    name = next(iter(saved))
    try:
        fresh.import_state({key: value for key, value in saved.items() if key != name})
    except RuntimeError:
        return
    raise AssertionError(f"{label}.import_state takes a state without {name!r}; it must raise RuntimeError")
