"""Checks of backbones and of providers of many."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneProvider, BackboneSpec, Features
from sslcli.runs import files

from .common import changed, check_options, equal, kind, refusal, reported, require, require_is, require_same, snapshot


def check_backbone(
    cls: type[Backbone],
    options: Mapping[str, Any] | None = None,
    *,
    channels: tuple[int, ...] = (3, 1),
    image_size: int = 32,
) -> None:
    """Checks shapes against the spec, determinism, copies, masks, and export and import of the weights.

    Args:
        options: plain data with which the network is small.
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
    _check_export(cls, parsed, backbone, images)


def check_provider(cls: type[BackboneProvider]) -> None:
    """Checks that a provider lists names, returns a backbone class for one, and raises KeyError for any other."""
    label, names = cls.__name__, cls.names()
    require(names, f"{label}.names() is empty")
    require(len(set(names)) == len(names), f"{label}.names() has a name twice")
    found = cls.get(names[0])
    good = isinstance(found, type) and issubclass(found, Backbone)
    require(good, f"{label}.get({names[0]!r}) is not a subclass of Backbone")
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
    spec: Any = getattr(backbone, "spec", None)
    require(isinstance(spec, BackboneSpec), f"{label}.spec is not set to a BackboneSpec by __init__")
    require_is(f"{label}.spec.channels", spec.channels, channels)
    state = torch.get_rng_state()
    require_is(f"{label}.describe()", cls.describe(options, channels, image_size), spec)
    require(torch.equal(state, torch.get_rng_state()), f"{label}.describe draws from torch's generator")
    sides = f"sides from {spec.minimum_size} in multiples of {spec.size_multiple}"
    good = image_size >= spec.minimum_size and image_size % spec.size_multiple == 0
    require(good, f"{label} takes {sides}; check it with such an image_size")
    found = backbone.train()(torch.randn(2, channels, image_size, image_size))
    require(isinstance(found, Features), f"{label}.forward returns {type(found).__name__}, not Features")
    require_is(f"{label}: the pooled features' type", kind(found.pooled), f"torch.float32 {(2, spec.feature_dim)}")
    require(found.pooled.requires_grad, f"{label}: no gradient can reach its weights from the pooled features")
    if found.tokens is not None:
        require(found.grid is not None, f"{label} returns tokens without their grid")
        rows, columns = found.grid or (0, 0)
        require_is(f"{label}: the shape of tokens on {rows}×{columns}", found.tokens.shape[:2], (2, rows * columns))
    first, second = (snapshot(_build(cls, options, channels, image_size)) for _ in range(2))
    require_same(first, second, f"{label}.build draws {{}} from something other than torch's generator")
    other = snapshot(_build(cls, options, channels, image_size, seed=1))
    require(changed(first, other), f"{label}.build makes the same weights whatever the seed")


def _pooled(backbone: Backbone, images: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone(images).pooled


def _check_evaluation(backbone: Backbone, images: Tensor) -> None:
    label = type(backbone).__name__
    before = snapshot(backbone.eval())
    first = _pooled(backbone, images)
    require(first.isfinite().all(), f"{label}: features in eval() are not all finite")
    require(equal(first, _pooled(backbone, images)), f"{label}: two passes over the same images in eval() differ")
    require_same(before, snapshot(backbone), f"{label}: a pass in eval() changes {{}}")
    close = torch.allclose(_pooled(backbone, images[:1]), first[:1], rtol=1e-3, atol=1e-4)
    require(close, f"{label}: in eval() an image's features depend on the others in its batch")
    copied = _pooled(copy.deepcopy(backbone), images)
    require(equal(copied, first), f"{label}: a deep copy gives other features (momentum encoders are deep copies)")
    _check_layers(backbone, images)
    if backbone.spec.maskable:
        _check_masks(backbone, images)
        return
    said = "is not maskable, and must reject {} with a UserError of one line"
    hidden, token = torch.zeros(len(images), 4, dtype=torch.bool), torch.zeros(backbone.spec.feature_dim)
    refused = refusal(lambda: backbone(images, hidden, mask_token=token))
    require(refused, f"{label} {said.format('a mask')}")
    refused = refusal(lambda: backbone(images, keep=torch.zeros(len(images), 1, dtype=torch.int64)))
    require(refused, f"{label} {said.format('`keep`')}")


def _check_layers(backbone: Backbone, images: Tensor) -> None:
    label = type(backbone).__name__
    if parts := backbone.layer_modules():
        own = {id(part) for part in backbone.modules()}
        require(all(id(part) in own for part in parts), f"{label}.layer_modules returns modules that are not its own")
        with reported(f"{label}, asked for as many layers as layer_modules returns"), torch.no_grad():
            backbone(images, layers=len(parts))
        more = refusal(lambda: backbone(images, layers=len(parts) + 1))
        require(more, f"{label}.layer_modules returns {len(parts)} layers, fewer than forward takes")
    with torch.no_grad():
        found = backbone(images)
        if not found.layers:
            refused = refusal(lambda: backbone(images, layers=2))
            require(refused, f"{label} has no layers, and must reject layers=2 with a UserError of one line")
            return
        last = found.layers[-1][1]
        require(len(found.layers) == 1, f"{label} returns {len(found.layers)} layers where one is asked for")
        require(found.tokens is not None and equal(last, found.tokens), f"{label}: the last layer is not its tokens")
        if refusal(lambda: backbone(images, layers=2)):  # it has but one
            return
        with reported(f"{label}, asked for its last two layers"):
            two = backbone(images, layers=2).layers
        require(
            len(two) == 2 and equal(two[-1][1], last), f"{label}, asked for two layers, does not return the last two"
        )
        require(refusal(lambda: backbone(images, layers=10_000)), f"{label} must reject more layers than it has")


def _check_masks(backbone: Backbone, images: Tensor) -> None:
    label, count = type(backbone).__name__, len(images)
    plain = backbone(images)
    require(plain.tokens is not None, f"{label} is maskable, but returns no tokens")
    assert plain.tokens is not None
    length, width = plain.tokens.shape[1:]
    token = torch.zeros(width, requires_grad=True)
    nothing = torch.zeros(count, length, dtype=torch.bool)
    found = backbone(images, nothing, mask_token=token)
    require(equal(found.pooled, plain.pooled), f"{label}: a mask that hides nothing changes the features")
    some = nothing.clone()
    some[:, ::2] = True
    found = backbone(images, some, mask_token=token)
    require(not equal(found.pooled, plain.pooled), f"{label}: a mask changes nothing")
    [gradient] = torch.autograd.grad(found.pooled.square().sum(), token, allow_unused=True)
    require(gradient is not None and bool(gradient.any()), f"{label}: no gradient reaches the mask token")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    even, odd = (torch.where(_pixels(hidden, plain.grid, images), noise, images) for hidden in (some, ~some))
    same = equal(backbone(even, some, mask_token=token).pooled, found.pooled)
    require(same, f"{label}: what a mask hides still changes the features")
    alone = (lambda: backbone(images, some)), (lambda: backbone(images, mask_token=token))
    require(all(map(refusal, alone)), f"{label} must reject a mask without a token, and a token without a mask")
    require(
        refusal(lambda: backbone(images, some[:, 1:], mask_token=token)), f"{label} must reject a mask of other size"
    )
    every = torch.arange(length).expand(count, -1)
    with torch.no_grad():
        kept = backbone(images, keep=every)
        require(_close(kept.tokens, plain.tokens), f"{label}: `keep` of all patches gives other tokens")
        order = torch.randperm(length, generator=torch.Generator().manual_seed(2))
        kept = backbone(images, keep=every[:, order])
        require(_close(kept.tokens, plain.tokens[:, order]), f"{label}: tokens do not come in the order of `keep`")
        half = backbone(images, keep=every[:, ::2])
        require_is(
            f"{label}: the shape of tokens with `keep`", half.tokens.shape[1:], (len(range(0, length, 2)), width)
        )
        same = _close(backbone(odd, keep=every[:, ::2]).pooled, half.pooled)
        require(same, f"{label}: patches that `keep` leaves out change the features")


def _close(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def _pixels(mask: Tensor, grid: tuple[int, int] | None, images: Tensor) -> Tensor:
    """Which pixels (N, 1, H, W) a mask of patches hides."""
    rows, columns = grid or (1, 1)
    shape = (images.shape[-2] // rows, images.shape[-1] // columns)
    return mask.view(-1, 1, rows, columns).repeat_interleave(shape[0], 2).repeat_interleave(shape[1], 3)


def _check_export(cls: type[Backbone], options: Any, backbone: Backbone, images: Tensor) -> None:
    label = f"{cls.__name__}.export_state"
    exported = backbone.export_state()
    good = isinstance(exported, tuple) and len(exported) == 2
    require(good, f"{label} must return the weights and the lines that load them")
    state, lines = exported
    with reported(f"{label} cannot be written to a file", ValueError):
        saved = files.snapshot(state)
    with reported(f"{label}: the lines are not Python", SyntaxError):
        compile(lines, "export_state", "exec")
    fresh = _build(cls, options, backbone.spec.channels, images.shape[-1], seed=1).eval()
    fresh.import_state(dict(saved))
    same = equal(_pooled(fresh, images), _pooled(backbone, images))
    require(same, f"{cls.__name__}: import_state of what export_state returned gives other features")
    fresh.load_state_dict(backbone.state_dict(), strict=True)
    name = next(iter(saved))
    try:
        fresh.import_state({key: value for key, value in saved.items() if key != name})
    except RuntimeError:
        return
    raise AssertionError(f"{cls.__name__}.import_state takes a state without {name!r}; it must raise RuntimeError")
