"""The two parts of the data: images to train a probe on, and test images."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sslcli.config.data_section import named
from sslcli.config.document import Document, read_file
from sslcli.config.options import validate
from sslcli.contracts.data import Dataset, DatasetOptions, StreamDataset
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.export import Trained
from sslcli.data.subset import limited
from sslcli.plugins import load
from sslcli.runs.directory import RunDirectory
from sslcli.runs.trained import stored_config

from .overlap import check_overlap
from .subject import resolved, source_of


@dataclass
class LabeledParts:
    """Opened data.

    Attributes:
        train: to train probes on; without labels the same object as `test`.
        test: the part `eval`.
        labeled: whether there are two labeled parts.
        view_size: side in pixels at which a network is given the images unless it says otherwise.
        overlap: what is known of images in both parts, for the protocol.
    """

    train: Dataset
    test: Dataset
    labeled: bool
    view_size: int
    overlap: dict[str, Any]


def open_parts(
    stored: dict[str, Any] | None, document: Document, *, needs_labels: bool, required: bool = True
) -> LabeledParts:
    """Opens the data of `choose_data`.

    Args:
        stored: as for `choose_data`.
        document: likewise.
        needs_labels: a probe will be trained, so the parts must not share images.
        required: refuse data without labels then; otherwise all images are both parts.

    Raises:
        UserError: no data given, invalid options, none found, no labels, or test images that are training images too.
    """
    cls, options, asked = choose_data(stored, document)
    labeled = [found for part in ("train", "eval") if (found := cls.labeled(options, part)) is not None]
    if len(labeled) < 2:
        everything = limited(cls.open(options))
        name = everything.info.name
        if needs_labels and required:
            if everything.labels is None:
                raise UserError(f"{name}: there are no labeled images to train and test on; choose data that has some")
            raise UserError(
                f"{name}: all labeled images are in one part; a probe is trained on one part and tested on another; "
                "choose data that has two (such as a folder with train/ and val/)"
            )
        return LabeledParts(everything, everything, False, cls.view_size(options), {})
    if "limit" in asked:  # on the command line it holds for both parts
        labeled = [found.model_copy(update={"limit": options.limit}) for found in labeled]
    train, test = (limited(cls.open(found)) for found in labeled)
    overlap = check_overlap(train, test) if needs_labels else {}
    return LabeledParts(train, test, True, cls.view_size(options), overlap)


def choose_data(
    stored: dict[str, Any] | None, document: Document
) -> tuple[type[Dataset], DatasetOptions, dict[str, Any]]:
    """Returns class and options of the dataset that `data.…` names, or else of the stored one with these changes.

    Args:
        stored: the options of the data that a run was trained on; None where that is not known.
        document: the command line.

    Returns:
        the class, its options, and the ones among them that are from the command line.

    Raises:
        UserError: no data given, no such dataset, or invalid options.
    """
    asked = document.data.get("data") or {}
    if not isinstance(asked, dict) or "name" in asked:
        asked = named(asked)
    if stored is None and "name" not in asked:
        raise UserError("no data to evaluate on: a network without a run has none of its own; add data=NAME")
    stored = stored or {}
    own = stored if asked.get("name", stored.get("name")) == stored.get("name") else {}
    merged = {**own, **asked}
    name = merged.pop("name")
    if not isinstance(name, str):
        raise UserError(f"command line: data.name: should be the name of a dataset, not {name!r}")
    cls: type[Dataset] = load("datasets", name)
    if issubclass(cls, StreamDataset):
        raise UserError(f"data: {name!r} is a stream, which can only be trained on; choose other data with data=NAME")
    return cls, validate(cls.Options, merged, repr(name), document, ("data",)), asked


def stored_data(trained: Trained) -> dict[str, Any]:
    """Returns the options of the data that a run's backbone was trained on; of a backbone file elsewhere only the
    name."""
    config = stored_config(trained.source) if trained.source is not None else None
    if config is None and trained.source is not None:
        with suppress(ConfigError, OSError, KeyError, TypeError, ValueError):
            config = read_file(RunDirectory(trained.source.parent).config).data
    data = config.get("data") if config is not None else None
    known = isinstance(data, dict) and isinstance(data.get("name"), str)
    return dict(data) if known and data is not None else {"name": trained.card.dataset}


def pretrained_on(stored: dict[str, Any] | None, test: Dataset) -> bool:
    """Returns whether a run, whose data had these options if they are known, was trained on the test images."""
    if stored is None or set(stored) <= {"name"}:
        return False
    try:
        cls: type[Dataset] = load("datasets", stored["name"])
        options = cls.Options.parse({key: value for key, value in stored.items() if key != "name"})
    except (ValueError, UserError):  # a run of another version, or its plugin is not installed
        return False
    return (cls, resolved(options)) == source_of(test)
