"""Checks of datasets."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import torch

from sslcli.contracts.data import (
    AnyDataset,
    DataInfo,
    Dataset,
    DatasetOptions,
    Part,
    RootedOptions,
    StreamDataset,
    StreamItem,
    StreamOptions,
)
from sslcli.contracts.errors import UnreadableImage
from sslcli.data.lanes import decoded
from sslcli.data.objects.items import to_pixels
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
    label, parsed = cls.__name__, _check_options(cls, options, DatasetOptions)
    dataset, again = cls.open(parsed), cls.open(parsed)
    _check_info(dataset)
    require(len(dataset) > 0, f"{label} is empty with these options")
    require(isinstance(dataset.name_of(0), str), f"{label}.name_of must return a text")
    _check_images(dataset, again)
    _check_labels(dataset, again)
    _check_limit(dataset, parsed)
    _check_given_statistics(dataset, parsed)
    for part in get_args(Part):
        good = isinstance(cls.labeled(parsed, part), cls.Options | None)
        require(good, f"{label}.labeled({part!r}) must return options of the dataset, or None")


def check_stream(cls: type[StreamDataset], options: Mapping[str, Any] | None = None) -> None:
    """Checks shards, images, labels, positions, pickling and the message for missing data.

    Args:
        options: plain data with which the stream can be opened. All of it is read several times: a few small shards.

    Raises:
        AssertionError: with what is wrong.
    """
    label, parsed = cls.__name__, _check_options(cls, options, StreamOptions)
    stream, again = cls.open(parsed), cls.open(parsed)
    _check_info(stream)
    _check_given_statistics(stream, parsed)
    names = list(stream.shards)
    good = names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    require(good, f"{label}.shards must name each shard once: {names}")
    require_is(f"{label}.shards, opened again,", list(again.shards), names)
    with reported(f"{label} cannot be pickled, which worker processes need"):
        copied: StreamDataset = pickle.loads(pickle.dumps(stream))
    count = 0
    for shard in range(len(names)):
        items = list(stream.read(shard, 0))
        _check_items(stream, items, f"{label}.read({shard}, 0)")
        for how, other in {"read again": stream, "opened again": again, "pickled": copied}.items():
            require(_same(other.read(shard, 0), items), f"{label}.read({shard}, 0) differs when it is {how}")
        for number in sorted({0, len(items) // 2, len(items) - 1} if items else ()):
            rest = stream.read(shard, items[number].next)
            behind = f"what follows image {number} of shard {shard}"
            require(_same(rest, items[number + 1 :]), f"{label}.read({shard}, {items[number].next}) is not {behind}")
        pairs = list(zip_longest(stream.read(shard, 0), stream.read(shard, 0)))
        good = all(None not in pair and _same(pair, [item] * 2) for pair, item in zip(pairs, items, strict=False))
        good = good and len(pairs) == len(items)
        require(good, f"{label}: two iterators that read shard {shard} at the same time disturb each other")
        count += len(items)
    require(count > 0, f"{label} is empty with these options")
    require(stream.length in (None, count), f"{label}.length is {stream.length}, but there are {count} images")


def _check_items(stream: StreamDataset, items: list[StreamItem], where: str) -> None:
    classes = stream.info.classes
    for number, item in enumerate(items):
        what = f"{where}: image {number}"
        require(isinstance(item, StreamItem), f"{what} is {kind(item)}, not a StreamItem")
        good = isinstance(item.next, int) and item.next > 0
        require(good, f"{what} has next={item.next!r}; it must be a number above 0, since 0 is the shard's beginning")
        if classes is not None:
            good = isinstance(item.label, int) and 0 <= item.label < len(classes)
            require(good, f"{what} has the label {item.label!r}, but there are {len(classes)} classes")
        with reported(f"{what} cannot be decoded", UnreadableImage):
            pixels = decoded(item, stream.info.channels, None)
        size = stream.info.image_size or tuple(pixels.shape[1:])
        require_is(what, kind(pixels), f"torch.uint8 {(stream.info.channels, *size)}")


def _same(found: Iterable[StreamItem], expected: Sequence[StreamItem]) -> bool:
    found = list(found)
    return len(found) == len(expected) and all(
        (one.next, one.label, one.name) == (other.next, other.label, other.name) and _same_image(one.image, other.image)
        for one, other in zip(found, expected, strict=True)
    )


def _same_image(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, bytes) else equal(to_pixels(one, 3), to_pixels(other, 3))


def _check_options(cls: type[AnyDataset], options: Mapping[str, Any] | None, base: type[DatasetOptions]) -> Any:
    """Checks options, the side of the views, and the message for missing data; returns the options."""
    label, parsed = cls.__name__, check_options(cls, options, base)
    size = cls.view_size(parsed)
    require(isinstance(size, int) and size > 0, f"{label}.view_size returns {size!r}, not a side in pixels")
    if isinstance(parsed, RootedOptions):
        said = refusal(lambda: cls.open(parsed.model_copy(update={"root": _NOWHERE})))
        good = said is not None and str(_NOWHERE) in said
        require(good, f"{label}: without data at root, opening must raise UserError, one line that names the folder")
    return parsed


def _some(dataset: Dataset) -> list[int]:
    return sorted({0, len(dataset) // 2, len(dataset) - 1})


def _check_info(dataset: AnyDataset) -> None:
    label = type(dataset).__name__
    info: Any = getattr(dataset, "info", None)
    require(isinstance(info, DataInfo), f"{label}.info is not set to a DataInfo by __init__")
    for name, values in (("mean", info.mean), ("std", info.std)):
        require_is(f"{label}: the length of info.{name}", len(values), info.channels)
        require(all(0 <= v <= 1 for v in values), f"{label}.info.{name} is {values}; it is for images in [0, 1]")
    require(all(v > 0 for v in info.std), f"{label}.info.std has a 0 in it: {info.std}")
    require(dataset.splits, f"{label}.splits is empty")
    for split in dataset.splits:
        with reported(f"{label}.Options rejects the split {split!r}, which {label}.splits names", ValueError):
            type(dataset).Options.parse({"split": split})


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


def _check_given_statistics(dataset: AnyDataset, options: DatasetOptions) -> None:
    given = {"mean": (0.25,) * dataset.info.channels, "std": (0.125,) * dataset.info.channels}
    info = type(dataset).open(options.model_copy(update=given)).info
    good = (info.mean, info.std) == (given["mean"], given["std"])
    require(good, f"{type(dataset).__name__}.open does not normalize with the options mean and std")
