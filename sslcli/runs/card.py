"""Builds a backbone from the card that is stored with its weights. Nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard
from sslcli.modules.headed import HeadedBackbone, KeptLayersOptions
from sslcli.plugins import PYTHON, PluginError, load


def read_card(path: Path, values: dict[str, Any]) -> BackboneCard:
    """Returns the card of a file; UserError if another version wrote it and this one cannot read it."""
    try:
        return BackboneCard(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (TypeError, KeyError):
        written_by = values.get("sslcli", "another version")
        raise UserError(
            f"{path}: its card was written by sslcli {written_by}, which this version cannot read"
        ) from None


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
        cls: type[Backbone] = _load(name, made_with)
        with torch.random.fork_rng(devices=[]):
            backbone = cls.build(cls.Options.parse(options), card.channels, card.image_size)
            if card.head is not None:
                backbone = HeadedBackbone(backbone, KeptLayersOptions.parse(card.head))
        fill(backbone)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise UserError(f"{path}: the installed backbone {name!r} rejects the card's options ({problems})") from error
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: its weights do not fit the installed backbone {name!r} ({reason})") from error
    return backbone.eval()


def _load(name: str, made_with: str) -> type[Backbone]:
    try:
        cls: type[Backbone] = load("backbones", name)
    except PluginError as error:
        if not made_with or name.startswith(f"{PYTHON}:"):  # the error says what to do about an object
            raise
        raise UserError(f"{error}; {made_with}") from error
    return cls
