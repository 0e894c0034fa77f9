"""A user's own dataset, an object of a Python program: inspected before it is used, and read item by item."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.multiprocessing
import torch.utils.data
from torch import Tensor

from sslcli.contracts.errors import UnreadableImage, UserError

from .items import Label, channels_of, declared_labels, split_item, to_pixels

#: Images of one size that take no more bytes than this together are read once and kept. Size alone decides, so that a
#: resumed run does what the run did.
MEMORY = 256 * 2**20
#: Items that are inspected first.
_INSPECTED = 8
#: Reading fewer items takes no time worth a message.
_MANY = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What a few items show about all.

    Attributes:
        size: (height, width) if theirs is the same, else None.
        channels: 1 if all of them are gray, else 3.
        labels: by index, of the items that have one.
        changing: read again, an item had other pixels.
    """

    size: tuple[int, int] | None
    channels: int
    labels: dict[int, Label]
    changing: bool


class Given:
    """Anything with `__len__` and `__getitem__` whose items are images, or begin with one (see `items`).

    Raises:
        UserError: it has no length, or cannot be indexed.
    """

    def __init__(self, dataset: Any, title: str) -> None:
        """Args:
        dataset: the user's.
        title: its name in messages (`python:MyDataset`).
        """
        kind = type(dataset).__name__
        if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(type(dataset), "__getitem__"):
            more = ": write list(…)" if hasattr(dataset, "__next__") else ""
            raise UserError(
                f"data: {kind} cannot be indexed{more}; a dataset needs __getitem__(index) and __len__(), or is a "
                "class that inherits from StreamDataset"
            )
        try:
            self.length = len(dataset)
        except (TypeError, NotImplementedError) as error:
            raise UserError(f"data: {kind} has no length; a dataset needs __getitem__(index) and __len__()") from error
        if not self.length:
            raise UserError(f"data: {kind} is empty")
        self.dataset, self.title = dataset, title
        self._everything: dict[int, tuple[Tensor | None, list[Label] | None]] = {}
        self._lock: tuple[int, Any] = (0, None)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: no lock, and no images that are in memory already."""
        return {"dataset": self.dataset, "title": self.title, "length": self.length, "_lock": (0, None)}

    def item(self, index: int, *, threads: bool = False) -> Any:
        """Returns an item; one at a time in each process, unless `threads`."""
        with nullcontext() if threads else self._alone():
            return self.dataset[index]

    def _alone(self) -> AbstractContextManager[object]:
        process, lock = self._lock
        if process != os.getpid():  # a lock that was held when this process was forked would never be released
            self._lock = (os.getpid(), lock := threading.RLock())
        context: AbstractContextManager[object] = lock
        return context

    @cached_property
    def look(self) -> Look:
        """Raises UserError if none of a few items, spread over the dataset, is an image."""
        inspected = sorted({round(n * (self.length - 1) / (_INSPECTED - 1)) for n in range(_INSPECTED)})
        images: list[Any] = []
        labels: dict[int, Label] = {}
        problem: tuple[int, Exception] | None = None
        changing = False
        for index in inspected:
            try:
                image, label = split_item(self.item(index))
                pixels = to_pixels(image, 3)
                images.append((tuple(pixels.shape[1:]), channels_of(image)))
                if len(images) <= 2:
                    again = to_pixels(split_item(self.item(index))[0], 3)
                    changing |= not torch.equal(again, pixels)
                if label is not None:
                    labels[index] = label
            except Exception as error:  # whatever the user's code raises
                problem = problem or (index, error)
        if not images and problem is not None:
            raise UserError(f"data: {self.title}[{problem[0]}]: {reason(problem[1])}") from problem[1]
        if changing:
            log.warning(
                "data: %s returns different pixels each time (a random transform?): leave that to the views, or else a "
                "resumed run differs from one that was not interrupted", self.title
            )  # fmt: skip
        sizes = {size for size, _ in images}
        size = sizes.pop() if len(sizes) == 1 else None
        return Look(size, max(channels for _, channels in images), labels, changing)

    @cached_property
    def declared(self) -> list[Label] | None:
        """The labels that the dataset has apart from its items, if the inspected items agree."""
        labels = declared_labels(self.dataset)
        agree = labels is not None and all(labels[index] == label for index, label in self.look.labels.items())
        return labels if agree else None

    def fits(self, channels: int) -> bool:
        """Whether its images are kept in memory by default."""
        size = self.look.size
        small = size is not None and self.length * channels * size[0] * size[1] <= MEMORY
        return small and not self.look.changing

    def everything(self, channels: int, *, keep: bool) -> tuple[Tensor | None, list[Label] | None]:
        """Reads every item once, and never again.

        Args:
            channels: of the images that are kept.
            keep: whether the images are wanted too; without them only the labels are.

        Returns:
            uint8 (N, channels, H, W), or None if not wanted, or an image has another size or cannot be read; and the
            labels, or None if one is missing. An item that cannot be read gets the label of another one.
        """
        known = self._everything.get(channels)
        if known is not None and (known[0] is not None or not keep):
            return known
        size = self.look.size
        what = f"images of {size[1]} × {size[0]} px into memory" if keep and size is not None else "items for labels"
        if self.length >= _MANY:
            log.info("data: %s: reading %s %s", self.title, f"{self.length:,}", what)
        pixels = torch.empty(self.length, channels, *size, dtype=torch.uint8) if keep and size is not None else None
        labels: list[Label | None] = []
        replacement = next(iter(self.look.labels.values()), None)
        for index in range(self.length):
            try:
                image, label = split_item(self.item(index))
                one = to_pixels(image, channels) if pixels is not None else None
            except Exception:  # the source replaces it, and names it
                one, label = None, replacement
            labels.append(label)
            if pixels is not None and one is not None and one.shape == pixels.shape[1:]:
                pixels[index] = one
            else:
                pixels = None
        complete = [label for label in labels if label is not None]
        self._everything[channels] = pixels, complete if len(complete) == self.length else None
        return self._everything[channels]

    def worker_obstacle(self) -> str | None:
        """Returns why worker processes cannot get the dataset from this one; None if they can."""
        return worker_obstacle(self)


def worker_obstacle(value: Any) -> str | None:
    """Returns why an object cannot be sent to worker processes; None if it can."""
    methods = torch.multiprocessing.get_all_start_methods()  # the default is the first
    if (torch.multiprocessing.get_start_method(allow_none=True) or methods[0]) == "fork":
        return None
    try:
        sent = pickle.dumps(value)
    except Exception as error:  # pickle raises all kinds
        return reason(error)
    in_notebook = b"__main__" in sent and not hasattr(sys.modules.get("__main__"), "__file__")
    return "its class or function is defined in a notebook" if in_notebook else None


def reason(error: Exception) -> str:
    """Returns an error in one line; only its text of one that is ours."""
    text = " ".join(str(error).split())[:300]
    return (
        text
        if type(error) in (ValueError, UnreadableImage) and text
        else f"{type(error).__name__}: {text}".rstrip(": ")
    )
