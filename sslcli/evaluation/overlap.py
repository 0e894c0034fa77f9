"""Images that a probe is fitted on and judged on as well: found by their files or their bytes, before anything runs.

Such images are recognized, not classified, and make any number too good. Data sets in use have a few of them (CIFAR-10
has near-duplicates in both parts, and web collections exact ones), so a few are told and many are refused.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.randomness import hash_bits

#: Above this share of the judged images the evaluation is refused.
LIMIT = 0.01
#: Files of equal size are compared by content only up to so many bytes altogether; beyond, by identity alone.
CONTENT_BYTES = 1 << 28
_ROWS = 4096
_KEY = 0x6F7665726C6170


@dataclass(frozen=True)
class Overlap:
    """What was found.

    Attributes:
        places: the places in the judged data set of the images that the training one has too.
        compared: by what images were compared.
    """

    places: tuple[int, ...]
    compared: str


def check_overlap(train: Dataset, judged: Dataset) -> tuple[dict[str, Any], str | None]:
    """Looks for judged images among the training images.

    Returns:
        what the protocol says of it, and a line to tell where there are a few.

    Raises:
        UserError: more than 1 % of the judged images are training images too.
    """
    found = find_overlap(train, judged)
    count, total = len(found.places), len(judged)
    described = {"shared_images": count, "compared": found.compared}
    if not count:
        return described, None
    text = (
        f"{judged.info.name}: {count:,} of the {total:,} images to judge on are among the training images too, such as "
        f"{judged.name_of(found.places[0])}"
    )
    if count > LIMIT * total:
        raise UserError(f"{text}; a probe would know them by heart: choose another split or folder for one of them")
    return described, text


def find_overlap(train: Dataset, judged: Dataset) -> Overlap:
    """Finds judged images among the training images: equal bytes where both are in memory; for files, the same file
    (through links of any kind) or a copy; otherwise nothing is compared, and that is said."""
    ours, theirs = train.images(), judged.images()
    if ours is not None and theirs is not None:
        places = equal_images(ours, theirs) if ours.shape[1:] == theirs.shape[1:] else []
        return Overlap(tuple(places), "the images' bytes")
    if train.path_of(0) is not None and judged.path_of(0) is not None:
        places, compared = equal_files(train, judged)
        return Overlap(tuple(places), compared)
    return Overlap((), "nothing: the images of one are files, those of the other are not")


def equal_images(train: Tensor, judged: Tensor) -> list[int]:
    """Returns the places of the judged images that are equal to a training image in every byte.

    Args:
        train: uint8 (M, C, H, W).
        judged: uint8 (N, C, H, W), of the same size.
    """
    bank, hashes = hash_images(train), hash_images(judged)
    order = bank.argsort()
    bank = bank[order]
    nearest = torch.searchsorted(bank, hashes).clamp_max(len(bank) - 1)
    candidates = (bank[nearest] == hashes).nonzero().flatten().tolist()
    return [place for place in candidates if torch.equal(train[order[nearest[place]]], judged[place])]


def hash_images(images: Tensor) -> Tensor:
    """Returns (N,) int64: a sum of the images' 64-bit words, each times an odd number of its own, modulo 2⁶⁴."""
    flat = images.reshape(len(images), -1)
    padding = -flat.shape[1] % 8
    factors = hash_bits(_KEY, torch.arange((flat.shape[1] + padding) // 8)) | 1
    parts = []
    for block in torch.split(flat, _ROWS):
        block = torch.nn.functional.pad(block.cpu(), (0, padding)).contiguous()
        parts.append((block.view(torch.int64) * factors).sum(dim=1))
    return torch.cat(parts)


def equal_files(train: Dataset, judged: Dataset) -> tuple[list[int], str]:
    """Returns the places of the judged files that are training files too, and by what they were compared."""
    known: set[tuple[int, int]] = set()
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, state in _files(train):
        known.add((state.st_dev, state.st_ino))
        by_size[state.st_size].append(path)
    places, rest = [], []
    for place, (path, state) in enumerate(_files(judged)):
        if (state.st_dev, state.st_ino) in known:
            places.append(place)
        elif state.st_size and state.st_size in by_size:
            rest.append((place, path, state.st_size))
    sizes = {size for _, _, size in rest}
    to_read = sum(size for _, _, size in rest) + sum(size * len(by_size[size]) for size in sizes)
    if to_read > CONTENT_BYTES:
        return places, "the files, through links"
    contents = {_digest(path) for size in sizes for path in by_size[size]} - {None}
    places += [place for place, path, _ in rest if _digest(path) in contents]
    return sorted(places), "the files, through links, and the bytes of those of equal size"


def _files(data: Dataset) -> list[tuple[Path, os.stat_result]]:
    """Path and state, links followed, of each image; a file that has gone has a state of its own."""
    found = []
    for index in range(len(data)):
        path = data.path_of(index)
        assert path is not None
        try:
            found.append((path, path.stat()))
        except OSError:  # the reader will say what is wrong with it
            found.append((path, os.stat_result((0, -1 - index, -1, 0, 0, 0, 0, 0, 0, 0))))
    return found


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
