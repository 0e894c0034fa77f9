"""What can be evaluated: a run, a checkpoint, a backbone file; or a network by its name, untrained, with published
weights or with those of a plain weight file. For these a card is made here."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from sslcli.augmentations.resampling import Interpolation
from sslcli.config.document import Document
from sslcli.config.options import validate
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.contracts.options import Options
from sslcli.data.normalization import IMAGENET
from sslcli.plugins import PluginError, load
from sslcli.runs import files
from sslcli.runs.backbone_file import read_card
from sslcli.runs.directory import RunDirectory
from sslcli.runs.weights import fill, read_weights, start_from
from sslcli.storage import expanded
from sslcli.version import __version__
from sslcli.weight_files import is_torch_file

from .feature import Feature
from .parts import LabeledParts

log = logging.getLogger(__name__)

#: Files that hold weights alone; torchvision, timm and Lightning write such.
PLAIN = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


class ShownOptions(Options):
    """How images are prepared for a network, and which output is its feature: options of every evaluation."""

    feature: Feature = "pooled"
    """`pooled`: what the network pools itself (a ViT: its class token); `tokens`: the mean of its patch tokens;
    `cls_lastN`: the class tokens of its last N layers, concatenated (`cls_last4`: DINO's for ViT-S); `cls_mean`: class
    token and mean of the patch tokens, concatenated (DINO's for ViT-B)."""
    interpolation: Interpolation = "bilinear"
    """How images of another size are resized before they are cropped to the center: `bilinear`, or `bicubic` as in
    DINO's and BYOL's evaluations; both antialiased."""
    mean: tuple[float, ...] | None = None
    """Normalization, per channel, for images in [0, 1]; only for networks without a card; all others have their own."""
    std: tuple[float, ...] | None = None
    """Likewise."""
    image_size: int | None = Field(default=None, ge=1)
    """Side in pixels of the images; only for networks without a card; default: the dataset's own view size."""


@dataclass(frozen=True)
class Target:
    """What a word on the command line means.

    Attributes:
        word: as it was typed.
        kind: `trained` has a card; `name` is a registered backbone; `weights` is a plain weight file.
    """

    word: str
    kind: Literal["trained", "name", "weights"]

    @property
    def path(self) -> Path:
        return expanded(self.word)


def find_target(word: str | Path) -> Target:
    """Returns what a word means; files and runs come before names.

    Raises:
        UserError: neither, or a damaged file.
    """
    word = str(word)
    path = expanded(word)
    if path.is_file():
        return Target(word, "weights" if _is_plain(path) else "trained")
    if path.is_dir() and RunDirectory(path).is_run():
        return Target(word, "trained")
    try:
        load("backbones", word)
    except PluginError as error:
        if path.is_dir():
            return Target(word, "trained")  # what is missing is reported when it is read
        hint = str(error) if "did you mean" in str(error) else "`ssl list backbones` shows the names of networks"
        raise UserError(f"{word}: no such run or file; {hint}") from error
    return Target(word, "name")


def _is_plain(path: Path) -> bool:
    if not path.name.endswith(PLAIN):
        return False
    try:
        return is_torch_file(path) or not files.is_ours(path)
    except (files.DamagedFile, OSError) as error:
        if path.suffix != ".safetensors":
            return True  # reading it as weights says what it is
        raise UserError(str(error)) from error


def read_shown(document: Document, targets: list[Target]) -> ShownOptions:
    """Returns `feature`, `interpolation`, `mean`, `std`, `image_size` of the command line.

    Raises:
        UserError: invalid ones, or ones that no target accepts.
    """
    values = {key: document.data[key] for key in ShownOptions.model_fields if key in document.data}
    shown = validate(ShownOptions, values, "ssl eval", document)
    if all(target.kind == "trained" for target in targets):
        for key in ("backbone", "mean", "std", "image_size"):
            if key in document.data:
                raise UserError(
                    f"command line: {key}: {targets[0].word} has its own; it is for a backbone's name or a plain "
                    "weight file"
                )
    return shown


def load_network(target: Target, document: Document, shown: ShownOptions, parts: LabeledParts, *, seed: int) -> Trained:
    """Builds a network without a card, on the CPU, in `eval()`, and makes the card.

    Args:
        target: a name or a plain weight file.
        document: the command line, for `backbone.…`.
        shown: normalization and size.
        parts: the data, for what `shown` leaves open.
        seed: of an untrained network's weights.

    Raises:
        UserError: a weight file without a network's name, invalid options, or weights that do not fit.
    """
    values = document.data.get("backbone") or {}
    name = target.word if target.kind == "name" else values.get("name")
    values = {key: value for key, value in values.items() if key != "name"}
    if not isinstance(name, str):
        raise UserError(
            f"{target.word}: holds weights but not the name of their network; add backbone=NAME (backbone=resnet50)"
        )
    cls: type[Backbone] = load("backbones", name)
    asked = validate(cls.Options, values, repr(name), document, ("backbone",))
    info = parts.train.info
    size = shown.image_size or parts.view_size
    options = cls.fit_options(asked, size)
    backbone = _built(cls, options, info.channels, size, seed)
    published = getattr(options, "pretrained", False) or getattr(options, "weights", None) is not None
    if target.kind == "weights":
        if published:
            raise UserError(f"{target.word}: the weights come from this file; leave out pretrained and weights")
        state = read_weights(target.path, backbone.export_state()[0])
        fitting = cls.fit_options(asked, size, state)
        if fitting != options:
            options, backbone = fitting, _built(cls, fitting, info.channels, size, seed)
        left_out = fill(backbone, state, target.word, name)
        if left_out:
            log.info(f"{target.word}: read without the classifier ({', '.join(left_out)})")
        with target.path.open("rb") as file:
            origin, digest = "weight file", hashlib.file_digest(file, "sha256").hexdigest()
    else:
        start_from(backbone, name, options)
        origin, digest = ("published weights" if published else "untrained"), ""
    mean, std = (info.mean, info.std) if origin == "untrained" else _published_normalization(options, info.channels)
    card = BackboneCard(
        backbone={"name": name, **options.plain()}, channels=info.channels, image_size=size,
        feature_dim=backbone.spec.feature_dim, mean=shown.mean or mean, std=shown.std or std, method=origin,
        dataset="none" if origin == "untrained" else "not known", step=0, epoch=0.0, sslcli=__version__,
    )  # fmt: skip
    for key, numbers in (("mean", card.mean), ("std", card.std)):
        if len(numbers) != info.channels:
            raise UserError(f"command line: {key}: should have {info.channels} numbers, one for each channel")
    if min(card.std) <= 0:
        raise UserError("command line: std: should be numbers above 0")
    hint = "; such weights usually need larger images: image_size=224" if origin != "untrained" and size < 128 else ""
    center, scale = ("/".join(f"{value:.3g}" for value in values) for values in (card.mean, card.std))
    log.info(f"{target.word}: {origin}, images of {size} pixels, mean {center}, std {scale}{hint}")
    return Trained(backbone.eval(), card, None, digest)


def _published_normalization(options: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's, as published weights expect; for a file of sslcli's, that of its card."""
    path = getattr(options, "weights", None)
    path = None if path is None else expanded(path)
    if path is not None and not is_torch_file(path) and files.is_ours(path):
        values = files.read_document(path).get("card")
        if values is not None:
            card = read_card(path, values)
            return card.mean, card.std
    return IMAGENET[channels]


def _built(cls: type[Backbone], options: Any, channels: int, size: int, seed: int) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls.build(options, channels, size)
