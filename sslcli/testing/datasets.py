"""Checks of datasets."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, Part, RootedOptions
from sslcli.data.subset import limited

from .common import check_options, equal, kind, refusal, reported, require, require_is

#: A folder that does not exist.
_NOWHERE = Path("/no/such/folder")


def check_dataset(cls: type[Dataset], options: Mapping[str, Any] | None = None) -> None:
    """Checks images, labels, `limit`, pickling and the message for missing data.

    Args:
        options: plain data with which the data can be opened; a small part of them is enough.

    Raises:
        AssertionError: with what is wrong.
    """
    label, parsed = cls.__name__, check_options(cls, options, DatasetOptions)
    size = cls.view_size(parsed)
    require(isinstance(size, int) and size > 0, f"{label}.view_size returns {size!r}, not a side in pixels")
    if isinstance(parsed, RootedOptions):
        said = refusal(lambda: cls.open(parsed.model_copy(update={"root": _NOWHERE})))
        good = said is not None and str(_NOWHERE) in said
        require(good, f"{label}: without data at root, opening must raise UserError, one line that names the folder")
    dataset, again = cls.open(parsed), cls.open(parsed)
    _check_info(dataset)
    _check_images(dataset, again)
    _check_labels(dataset, again)
    _check_limit(dataset, parsed)
    for part in get_args(Part):
        good = isinstance(cls.labeled(parsed, part), cls.Options | None)
        require(good, f"{label}.labeled({part!r}) must return options of the dataset, or None")


def _some(dataset: Dataset) -> list[int]:
    return sorted({0, len(dataset) // 2, len(dataset) - 1})


def _check_info(dataset: Dataset) -> None:
    label = type(dataset).__name__
    info: Any = getattr(dataset, "info", None)
    require(isinstance(info, DataInfo), f"{label}.info is not set to a DataInfo by __init__")
    require(len(dataset) > 0, f"{label} is empty with these options")
    for name, values in (("mean", info.mean), ("std", info.std)):
        require_is(f"{label}: the length of info.{name}", len(values), info.channels)
        require(all(0 <= v <= 1 for v in values), f"{label}.info.{name} is {values}; it is for images in [0, 1]")
    require(all(v > 0 for v in info.std), f"{label}.info.std has a 0 in it: {info.std}")
    require(dataset.splits, f"{label}.splits is empty")
    for split in dataset.splits:
        with reported(f"{label}.Options rejects the split {split!r}, which {label}.splits names", ValueError):
            type(dataset).Options.parse({"split": split})
    require(isinstance(dataset.name_of(0), str), f"{label}.name_of must return a text")


def _check_images(dataset: Dataset, again: Dataset) -> None:
    label, info = type(dataset).__name__, dataset.info
    with reported(f"{label} cannot be pickled, which worker processes need"):
        copied: Dataset = pickle.loads(pickle.dumps(dataset))
    for i in _some(dataset):
        image = dataset.image(i)
        size = tuple(getattr(image, "shape", ()))[1:]
        require_is(f"{label}.image({i})", kind(image), f"torch.uint8 {(info.channels, *(info.image_size or size))}")
        for how, other in {"read again": dataset, "opened again": again, "pickled": copied}.items():
            require(equal(other.image(i), image), f"{label}.image({i}) differs when it is {how}")
        require(equal(dataset.image_for(i, None), image), f"{label}.image_for({i}, None) is not image({i})")
        smaller, side = dataset.image_for(i, 4), min(4, *size)
        good = smaller.dtype == torch.uint8 and len(smaller) == info.channels and min(smaller.shape[1:]) >= side
        require(good, f"{label}.image_for({i}, 4) is {kind(smaller)}; no side may fall below 4")
        require(equal(dataset.image_for(i, 4), smaller), f"{label}.image_for({i}, 4) differs when it is read again")
    images = dataset.images()
    if images is None:
        return
    require(info.image_size is not None, f"{label}.images() returns images of one size, but its info has no image_size")
    shape = (len(dataset), info.channels, *(info.image_size or ()))
    require_is(f"{label}.images()", kind(images), f"torch.uint8 {shape}")
    for i in _some(dataset):
        require(equal(images[i], dataset.image(i)), f"{label}: images()[{i}] is not image({i})")


def _check_labels(dataset: Dataset, again: Dataset) -> None:
    label, labels, classes = type(dataset).__name__, dataset.labels, dataset.info.classes
    if labels is None:
        return
    require_is(f"{label}.labels", f"{labels.device} {kind(labels)}", f"cpu torch.int64 {(len(dataset),)}")
    require(int(labels.min()) >= 0, f"{label}.labels has negative numbers; without labels it must be None")
    require(classes is not None, f"{label} has labels, but its info has no classes")
    count, largest = len(classes or ()), int(labels.max())
    require(largest < count, f"{label}.labels go to {largest}, but there are {count} classes")
    same = again.labels is not None and equal(labels, again.labels)
    require(same, f"{label}: opened again, its labels differ")


def _check_limit(dataset: Dataset, options: DatasetOptions) -> None:
    label, limit = type(dataset).__name__, max(1, len(dataset) // 2)
    part = limited(type(dataset).open(options.model_copy(update={"limit": limit})))
    require_is(f"{label}: the number of images with limit={limit}", len(part), limit)
    if dataset.labels is None or part.labels is None:
        return
    require_is(f"{label}: the number of labels with limit={limit}", len(part.labels), limit)
    classes = len(dataset.info.classes or ())
    whole = torch.bincount(dataset.labels, minlength=classes) * limit / len(dataset)
    got = torch.bincount(part.labels, minlength=classes)
    good = ((got - whole).abs() <= 1).all()
    require(good, f"{label} with limit={limit} does not keep the proportion of each class: {got.tolist()}")
