"""A backbone as one file: its weights under the names that other tools know, and the card that says what they are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..contracts.backbone import Backbone
from ..contracts.errors import UserError
from ..contracts.export import BackboneCard, Trained
from . import files
from .card import build_backbone, read_card


def save_backbone(path: Path, backbone: Backbone, card: BackboneCard) -> None:
    """Writes a safetensors file whole or not at all; whatever reads safetensors reads the weights.

    Args:
        path: the file; one that is there is replaced.
        backbone: on any device and in any memory format; stays as it is.
        card: what goes along in the header.

    Raises:
        UserError: two names of the backbone's state share memory, or the file cannot be written.
    """
    try:
        tensors = files.snapshot(backbone.export_state()[0])
    except ValueError as error:
        name = card.backbone.get("name")
        raise UserError(f"{path}: the backbone {name!r} cannot be written: {error}") from error
    try:
        files.write(path, tensors, {"card": asdict(card)})
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); choose another place for it") from error


def load_backbone_file(path: Path) -> Trained:
    """Builds the backbone of a file that `save_backbone` wrote, from its card alone; runs nothing that the file holds.

    Returns:
        the backbone on the CPU, in `eval()`, with its card and the file's digest.

    Raises:
        UserError: no such file, no safetensors file, a byte that has changed, no card, or a backbone whose plugin is
            missing or does not fit.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name the backbone file in it")
    try:
        state, document = files.read(path)
        digest = files.read_digest(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except files.DamagedFile as error:
        raise UserError(str(error)) from error
    if not isinstance(document.get("card"), dict):
        raise UserError(f"{path}: holds no backbone's card; `ssl export backbone` writes files that do")
    card = read_card(path, document["card"])
    backbone = build_backbone(path, card, lambda built: built.import_state(state))
    return Trained(backbone, card, None, digest)
