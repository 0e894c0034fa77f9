"""A backbone as one file: its weights under the names that other tools use, and a card that describes them.

A backbone is built from its card alone; nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from sslcli.backbones.wrapped import WrappedBackbone
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.memory import is_out_of_memory, readable
from sslcli.modules.headed import HeadedBackbone, KeptLayersOptions
from sslcli.plugins import PYTHON, PluginError, choose, load
from sslcli.storage import writing

from . import files
from .network_size import state_bytes, without_memory

#: A network has at most so many times the bytes of its file, whose numbers may be shorter, and so many more bytes:
#: buffers that are not saved.
_LARGER, _SMALL = 4, 64 * 2**20


def save_backbone(
    path: Path, backbone: Backbone, card: BackboneCard, plugin: dict[str, str] | None = None, key_names: str = ""
) -> None:
    """Writes a safetensors file atomically; any program that reads safetensors can read the weights.

    Args:
        path: the file; an existing one is replaced.
        backbone: on any device and in any memory format; not changed.
        card: the description, stored in the header.
        plugin: `package` and `version` of the backbone's class; by default those that are installed.
        key_names: the tool whose names the weights have, for the header.

    Raises:
        UserError: two names of the backbone's state share memory, or the file cannot be written.
    """
    try:
        tensors = files.snapshot(backbone.export_state()[0])
    except ValueError as error:
        name = card.backbone.get("name")
        raise UserError(f"{path}: the backbone {name!r} cannot be written: {error}") from error
    plugin = plugin or backbone_plugin(card)
    plain = describe(card, plugin) | ({"key_names": key_names} if key_names else {})
    with writing(path, "; choose another path"):
        files.write(path, tensors, {"card": asdict(card), "plugin": plugin}, plain)


def backbone_plugin(card: BackboneCard) -> dict[str, str] | None:
    """Returns package and version of the installed backbone of a card; None if it is not installed."""
    try:
        found = choose("backbones", str(card.backbone.get("name", "")).partition("/")[0])
    except PluginError:
        return None
    return {"package": found.package, "version": found.version}


def describe(card: BackboneCard, plugin: dict[str, str] | None = None) -> dict[str, str]:
    """Returns a card as plain strings, which any tool shows; lists and options are JSON.

    Args:
        card: of the backbone.
        plugin: `package` and `version` of its class; by default those that are installed.
    """
    plugin = plugin or backbone_plugin(card)
    options = {key: value for key, value in card.backbone.items() if key != "name"}
    plain = {"format": "pt", "backbone": str(card.backbone.get("name", "")), "backbone_options": json.dumps(options)}
    if plugin is not None:
        plain |= {"backbone_package": plugin["package"], "backbone_version": plugin["version"]}
    if card.head is not None:
        plain["projector_layers"] = json.dumps(card.head)
    for name in ("channels", "image_size", "feature_dim", "method", "dataset", "step", "epoch"):
        plain[name] = str(getattr(card, name))
    return plain | {"mean": json.dumps(card.mean), "std": json.dumps(card.std), "sslcli_version": card.sslcli}


def load_backbone_file(path: Path) -> Trained:
    """Builds the backbone of a file that `save_backbone` wrote, from its card alone; runs no code from the file.

    Returns:
        the backbone on the CPU, in `eval()`, with its card and the file's digest.

    Raises:
        UserError: no such file, not a safetensors file, a changed byte, no card, or a backbone whose plugin is missing
            or does not fit.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give the backbone file in it")
    try:
        state, document = files.read(path)
        digest = files.read_digest(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except files.DamagedFile as error:
        raise UserError(str(error)) from error
    if not isinstance(document.get("card"), dict):
        raise UserError(f"{path}: has no backbone card; `ssl export backbone` writes files that have one")
    card = read_card(path, document["card"])
    plugin = read_plugin(document.get("plugin"))
    made_with = f"the file was made with {plugin['package']} {plugin['version']}: install it" if plugin else ""
    backbone = build_backbone(path, card, lambda built: import_checked(built, state), made_with)
    return Trained(backbone, card, None, digest, path, plugin)


_CARD = TypeAdapter(BackboneCard)


def read_card(path: Path, values: Any) -> BackboneCard:
    """Returns the card of a file; UserError if another version wrote it and this one cannot read it."""
    try:
        card = _CARD.validate_json(json.dumps(values), strict=True)  # strict, but lists are tuples
        numbers = [*card.mean, *card.std, card.epoch]
        sizes = min(card.channels, card.image_size, card.feature_dim, card.step + 1)
        if not set(values) <= {field.name for field in fields(BackboneCard)} or sizes < 1:
            raise ValueError
        if not all(map(math.isfinite, numbers)) or min(card.std) <= 0 or len(card.mean) != len(card.std):
            raise ValueError
    except (ValueError, TypeError):
        written_by = ascii(values.get("sslcli", "another version") if isinstance(values, dict) else "?").strip("'")
        raise UserError(
            f"{path}: its card was written by sslcli {written_by[:40]}, which this version cannot read"
        ) from None
    return card


def read_plugin(value: Any) -> dict[str, str] | None:
    """Returns what a document says of a backbone's package; None if it says nothing that can be understood."""
    known = isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("package", "version"))
    return value if known else None


def import_checked(built: Backbone, state: dict[str, Tensor]) -> None:
    """Loads what `export_state` returned; raises RuntimeError, or ValueError as `check_types`."""
    check_types(built.export_state()[0], state)
    built.import_state(state)


def check_types(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError if weights are not numbers that a network's can be: integers (quantized, perhaps) for floating
    point, for example. A lower or higher precision is converted."""
    for name, value in state.items():
        if name in own and not _converts(value, own[name]):
            raise ValueError(f"{name!r} holds {value.dtype}, not {own[name].dtype}")


def _converts(value: Tensor, own: Tensor) -> bool:
    return value.dtype == own.dtype or not (
        value.is_complex() or (own.is_floating_point() and not value.is_floating_point())
    )


def build_backbone(path: Path, card: BackboneCard, fill: Callable[[Backbone], object], made_with: str = "") -> Backbone:
    """Builds the backbone of a card and calls `fill` to load the weights; torch's generator is not changed.

    Args:
        path: the file of the card, for messages.
        card: describes the backbone.
        fill: loads the weights into the module; raises RuntimeError if they do not fit.
        made_with: the package of the backbone, and what to do if it is missing, for messages.

    Returns:
        the backbone on the CPU, in `eval()`.

    Raises:
        UserError: the backbone's plugin is missing, rejects the options, or does not fit the weights.
    """
    options = dict(card.backbone)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{path}: its card names no backbone")
    try:
        cls: type[Backbone] = load("backbones", name)
    except PluginError as error:  # of an object it says itself what to do
        advice = f"; {made_with}" if made_with and not name.startswith(f"{PYTHON}:") else ""
        raise UserError(f"{path}: {error}{advice}") from error
    try:
        parsed = cls.Options.parse({**cls.Options.legacy, **options})
        if not issubclass(cls, WrappedBackbone):  # a given module is there already
            _check_size(path, lambda: cls.build(parsed, card.channels, card.image_size))
        with torch.random.fork_rng(devices=[]):
            backbone = cls.build(parsed, card.channels, card.image_size)
            if card.head is not None:
                backbone = HeadedBackbone(backbone, KeptLayersOptions.parse(card.head))
        fill(backbone)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise UserError(f"{path}: the installed backbone {name!r} rejects the card's options ({problems})") from error
    except (RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: its weights do not fit the installed backbone {name!r} ({reason})") from error
    return backbone.eval()


def _check_size(path: Path, build: Callable[[], Backbone]) -> None:
    """Raises UserError if a card describes a network that the file cannot hold the weights of, before it is built."""
    try:
        network = without_memory(build)
    except RuntimeError:
        raise UserError("its card describes a network that is too large for any memory") from None
    held = path.stat().st_size
    if network is not None and state_bytes(network) > _LARGER * held + _SMALL:
        size = readable(state_bytes(network))
        raise UserError(f"its card describes a network of {size}, and the file has {readable(held)}: the card is wrong")
