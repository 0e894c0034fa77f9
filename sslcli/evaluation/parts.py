"""The two parts of the data: images to fit a probe on, and others to judge it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.document import Document
from ..config.options import validate
from ..contracts.data import Dataset, DatasetOptions, Part
from ..contracts.errors import UserError
from ..plugins import load
from .overlap import check_overlap
from .subject import same_source


@dataclass
class Parts:
    """Opened data.

    Attributes:
        train: to fit on; without labels the same object as `judged`.
        judged: to judge on.
        labelled: whether there are two labelled parts.
        view_size: side in pixels at which a network is shown the images unless it says otherwise.
        overlap: what is known of images in both parts, for the protocol.
    """

    train: Dataset
    judged: Dataset
    labelled: bool
    view_size: int
    overlap: dict[str, Any]


def open_parts(stored: dict[str, Any] | None, document: Document, *, needs_labels: bool) -> tuple[Parts, list[str]]:
    """Opens the data that `data.…` overrides name, or else the stored ones changed by them.

    Args:
        stored: the options of the data that a run was trained on; None where that is not known.
        document: the command line.
        needs_labels: refuse data without; otherwise those are both parts.

    Returns:
        the parts, and lines to tell.

    Raises:
        UserError: no data named, wrong options, no data there, no labels, or images to judge on that are also
            among those to fit on.
    """
    asked = document.data.get("data") or {}
    if not isinstance(asked, dict):
        asked = {"name": asked}
    if stored is None and "name" not in asked:
        raise UserError("which data to judge on? Networks without a run have none of their own: add data=NAME")
    stored = stored or {}
    own = stored if asked.get("name", stored.get("name")) == stored.get("name") else {}
    merged = {**own, **asked}
    name = merged.pop("name")
    if not isinstance(name, str):
        raise UserError(f"command line: data.name: should be the name of a data set, not {name!r}")
    cls: type[Dataset] = load("datasets", name)
    options = validate(cls.Options, merged, repr(name), document, ("data",))
    found = [_part(cls, options, part, limited="limit" in asked) for part in ("train", "eval")]
    if found[0] is None or found[1] is None:
        if needs_labels:
            raise UserError(f"{name}: there are no labelled images to fit and to judge on; name data that have some")
        everything = cls.open(options)
        return Parts(everything, everything, False, cls.view_size(options), {}), []
    train, judged = cls.open(found[0]), cls.open(found[1])
    overlap, lines = _checked(train, judged) if needs_labels else ({}, [])
    if _pretrained_on(stored, judged):
        overlap["pretrained_on_judged"] = True
        lines.append(f"{name}: the backbone was trained on the very images that it is judged on (without their labels)")
    return Parts(train, judged, True, cls.view_size(options), overlap), lines


def _part(cls: type[Dataset], options: DatasetOptions, part: str, limited: bool) -> DatasetOptions | None:
    chosen: Part = "train" if part == "train" else "eval"
    found = cls.labelled(options, chosen)
    if found is not None and limited:  # asked for here, it holds for both parts
        found = found.model_copy(update={"limit": options.limit})
    return found


def _checked(train: Dataset, judged: Dataset) -> tuple[dict[str, Any], list[str]]:
    described, line = check_overlap(train, judged)
    return described, [] if line is None else [line]


def _pretrained_on(stored: dict[str, Any], judged: Dataset) -> bool:
    """Whether the backbone's own training images are the ones to judge on, which flatters it."""
    if "name" not in stored:
        return False
    values = {key: value for key, value in stored.items() if key != "name"}
    cls: type[Dataset] = load("datasets", stored["name"])
    try:
        options = cls.Options.parse(values)
    except ValueError:  # a run of another version
        return False
    return cls is type(judged) and same_source(options, judged.options)
