"""Checks of data sets."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, Part, RootedOptions
from sslcli.data.subset import limited

from .common import check_options, equal, refusal, require

#: Where no data are.
_NOWHERE = Path("/no/such/folder")


def check_dataset(cls: type[Dataset], options: Mapping[str, Any] | None = None) -> None:
    """Checks images, labels, `limit`, pickling and what is said where there are no data.

    Args:
        cls: the class.
        options: plain data with which the data can be opened; a small part of them is enough.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed = check_options(cls, options, DatasetOptions)
    size = cls.view_size(parsed)
    require(isinstance(size, int) and size > 0, f"{cls.__name__}.view_size returns {size!r}, not a side in pixels")
    if isinstance(parsed, RootedOptions):
        # First, and with the folder alone changed: it must not be found out in the middle of a run.
        moved = parsed.model_copy(update={"root": _NOWHERE})
        said = refusal(lambda: cls.open(moved))
        require(
            said is not None and str(_NOWHERE) in said,
            f"{cls.__name__}: without data at root, opening must raise UserError, one line that names the folder",
        )
    dataset = cls.open(parsed)
    _check_info(dataset)
    _check_images(dataset)
    _check_labels(dataset)
    _check_limit(dataset, parsed)
    _check_repeats(dataset, parsed)
    parts: tuple[Part, Part] = ("train", "eval")
    for part in parts:
        labeled = cls.labeled(parsed, part)
        require(
            labeled is None or isinstance(labeled, cls.Options),
            f"{cls.__name__}.labeled({part!r}) must return options of the data set, or None",
        )


def _places(dataset: Dataset) -> list[int]:
    return sorted({0, len(dataset) // 2, len(dataset) - 1})


def _check_info(dataset: Dataset) -> None:
    label, info = type(dataset).__name__, getattr(dataset, "info", None)
    require(isinstance(info, DataInfo), f"{label}.info is not set to a DataInfo by __init__")
    assert isinstance(info, DataInfo)
    require(len(dataset) > 0, f"{label} is empty with these options")
    for name, values in (("mean", info.mean), ("std", info.std)):
        require(
            len(values) == info.channels, f"{label}.info.{name} has {len(values)} numbers for {info.channels} channels"
        )
        require(all(0 <= v <= 1 for v in values), f"{label}.info.{name} is {values}; it is for images in [0, 1]")
    require(all(v > 0 for v in info.std), f"{label}.info.std has a 0 in it: {info.std}")
    require(bool(dataset.splits), f"{label}.splits is empty")
    for split in dataset.splits:
        try:
            type(dataset).Options.parse({"split": split})
        except ValidationError as error:
            raise AssertionError(f"{label}.Options refuses the split {split!r}, which {label}.splits names") from error
    require(isinstance(dataset.name_of(0), str), f"{label}.name_of must return a text")


def _check_images(dataset: Dataset) -> None:
    label, info = type(dataset).__name__, dataset.info
    for place in _places(dataset):
        image = dataset.image(place)
        require(
            isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3,
            f"{label}.image({place}) is no uint8 tensor (C, H, W)",
        )
        require(
            image.shape[0] == info.channels,
            f"{label}.image({place}) has {image.shape[0]} channels, not {info.channels}",
        )
        size = (image.shape[1], image.shape[2])
        require(info.image_size in (None, size), f"{label}.image({place}) is {size}, the info says {info.image_size}")
        require(equal(dataset.image(place), image), f"{label}: read again, image({place}) is another")
        require(equal(dataset.image_for(place, None), image), f"{label}.image_for({place}, None) is not image({place})")
        smaller, side = dataset.image_for(place, 4), min(4, *size)
        require(
            smaller.dtype == torch.uint8 and smaller.shape[0] == info.channels and min(smaller.shape[1:]) >= side,
            f"{label}.image_for({place}, 4) is {smaller.dtype} {tuple(smaller.shape)}; no side may fall below 4",
        )
        require(equal(dataset.image_for(place, 4), smaller), f"{label}.image_for({place}, 4) is another each time")
    images = dataset.images()
    if images is None:
        return
    require(info.image_size is not None, f"{label} returns images() of one size, and its info has no image_size")
    assert info.image_size is not None
    shape = (len(dataset), info.channels, *info.image_size)
    require(
        images.dtype == torch.uint8 and tuple(images.shape) == shape,
        f"{label}.images() is {images.dtype} {tuple(images.shape)}, not uint8 {shape}",
    )
    for place in _places(dataset):
        require(equal(images[place], dataset.image(place)), f"{label}: images()[{place}] is not image({place})")


def _check_labels(dataset: Dataset) -> None:
    label, labels = type(dataset).__name__, dataset.labels
    if labels is None:
        return
    require(
        labels.dtype == torch.int64 and tuple(labels.shape) == (len(dataset),) and labels.device.type == "cpu",
        f"{label}.labels must be int64 ({len(dataset)},) on the CPU, not {labels.dtype} {tuple(labels.shape)}",
    )
    require(int(labels.min()) >= 0, f"{label}.labels has negative numbers; without labels it is None")
    classes = dataset.info.classes
    require(classes is not None, f"{label} has labels, and its info no classes")
    assert classes is not None
    require(int(labels.max()) < len(classes), f"{label}.labels go to {int(labels.max())}, of {len(classes)} classes")


def _check_limit(dataset: Dataset, options: DatasetOptions) -> None:
    label, limit = type(dataset).__name__, max(1, len(dataset) // 2)
    part = limited(type(dataset).open(options.model_copy(update={"limit": limit})))
    require(len(part) == limit, f"{label} with limit={limit} has {len(part)} images")
    if dataset.labels is None or part.labels is None:
        return
    require(len(part.labels) == limit, f"{label} with limit={limit} has {len(part.labels)} labels")
    classes = len(dataset.info.classes or ())
    whole = torch.bincount(dataset.labels, minlength=classes) * limit / len(dataset)
    got = torch.bincount(part.labels, minlength=classes)
    require(
        bool(((got - whole).abs() <= 1).all()),
        f"{label} with limit={limit} does not keep the share of each class: {got.tolist()}",
    )


def _check_repeats(dataset: Dataset, options: DatasetOptions) -> None:
    label = type(dataset).__name__
    again = type(dataset).open(options)
    try:
        copied: Dataset = pickle.loads(pickle.dumps(dataset))
    except Exception as error:
        raise AssertionError(f"{label} cannot be pickled, which worker processes need: {error}") from error
    for place in _places(dataset):
        image = dataset.image(place)
        require(equal(again.image(place), image), f"{label}: opened again, image({place}) is another")
        require(equal(copied.image(place), image), f"{label}: after pickling, image({place}) is another")
    if dataset.labels is not None and again.labels is not None:
        require(equal(dataset.labels, again.labels), f"{label}: opened again, its labels are others")
