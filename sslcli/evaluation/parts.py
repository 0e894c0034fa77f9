"""The two parts of the data: images to fit a probe on, and others to judge it on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sslcli.config.document import Document
from sslcli.config.options import validate
from sslcli.contracts.data import Dataset, DatasetOptions, Part
from sslcli.contracts.errors import UserError
from sslcli.data.subset import Subset, limited
from sslcli.plugins import load

from .overlap import check_overlap
from .subject import same_source

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """Opened data.

    Attributes:
        train: to fit on; without labels the same object as `judged`.
        judged: to judge on.
        labeled: whether there are two labeled parts.
        view_size: side in pixels at which a network is shown the images unless it says otherwise.
        overlap: what is known of images in both parts, for the protocol.
    """

    train: Dataset
    judged: Dataset
    labeled: bool
    view_size: int
    overlap: dict[str, Any]


def open_parts(
    stored: dict[str, Any] | None, document: Document, *, needs_labels: bool, required: bool = True
) -> Parts:
    """Opens the data that `data.…` overrides name, or else the stored ones changed by them.

    Args:
        stored: the options of the data that a run was trained on; None where that is not known.
        document: the command line.
        needs_labels: a probe will be fitted, so that the parts may not share images.
        required: refuse data without labels then; otherwise all images are both parts.

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
    to_fit, to_judge = (_part(cls, options, part, limit_both="limit" in asked) for part in ("train", "eval"))
    if to_fit is None or to_judge is None:
        everything = limited(cls.open(options))
        if needs_labels and required:
            if everything.labels is not None:
                raise UserError(
                    f"{name}: all labeled images are one part, and a probe is fitted on one and judged on another; "
                    "name data that have two (a folder has, with train/ and val/ in it)"
                )
            raise UserError(f"{name}: there are no labeled images to fit and to judge on; name data that have some")
        return Parts(everything, everything, False, cls.view_size(options), {})
    train, judged = limited(cls.open(to_fit)), limited(cls.open(to_judge))
    overlap, line = check_overlap(train, judged) if needs_labels else ({}, None)
    if line is not None:
        log.warning(line)
    return Parts(train, judged, True, cls.view_size(options), overlap)


def _part(cls: type[Dataset], options: DatasetOptions, part: str, limit_both: bool) -> DatasetOptions | None:
    chosen: Part = "train" if part == "train" else "eval"
    found = cls.labeled(options, chosen)
    if found is not None and limit_both:
        found = found.model_copy(update={"limit": options.limit})
    return found


def pretrained_on(stored: dict[str, Any] | None, judged: Dataset) -> bool:
    """Tells whether the images that a run was trained on are the ones to judge on, which flatters it.

    Args:
        stored: the options of the data that a run was trained on, if they are known.
        judged: the images to judge on.
    """
    if stored is None or set(stored) <= {"name"}:
        return False
    try:
        cls: type[Dataset] = load("datasets", stored["name"])
        options = cls.Options.parse({key: value for key, value in stored.items() if key != "name"})
    except (ValueError, UserError):  # a run of another version, or its plugin is not installed
        return False
    whole = judged.data if isinstance(judged, Subset) else judged
    return cls is type(whole) and same_source(options, judged.options)
