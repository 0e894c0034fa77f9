"""Test images that are training images too: found by their files or their bytes, before anything runs.

Such images are recognized, not classified, which makes any number too good. Common data sets have a few of them
(CIFAR-10 has near-duplicates in both parts, web collections exact ones), so a few are reported and many are refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.randomness import hash_bits

log = logging.getLogger(__name__)

#: Above this share of the test images the evaluation is refused.
LIMIT = 0.01
#: Files of equal size are compared by content up to this many bytes in total; beyond, only by identity.
CONTENT_BYTES = 1 << 28
_ROWS = 4096
_KEY = 0x6F7665726C6170


def check_overlap(train: Dataset, test: Dataset) -> dict[str, Any]:
    """Looks for test images among the training images; warns if there are a few.

    Returns:
        what the protocol says of it.

    Raises:
        UserError: more than 1 % of the test images are training images too.
    """
    found, compared = find_overlap(train, test)
    if found:
        text = (
            f"{test.info.name}: {len(found):,} of the {len(test):,} test images are among the training images too, "
            f"such as {test.name_of(found[0])}"
        )
        if len(found) > LIMIT * len(test):
            raise UserError(f"{text}; a probe would memorize them: choose another split or folder for one of them")
        log.warning(text)
    return {"shared_images": len(found), "compared": compared}


def find_overlap(train: Dataset, test: Dataset) -> tuple[list[int], str]:
    """Finds test images among the training images: equal bytes where both are in memory; for files, the same file
    (through links of any kind) or a copy; otherwise nothing is compared.

    Returns:
        the indices of the test images that are training images too, ascending, and how images were compared.
    """
    ours, theirs = train.images(), test.images()
    if ours is not None and theirs is not None:
        return equal_images(ours, theirs) if ours.shape[1:] == theirs.shape[1:] else [], "the images' bytes"
    if train.path_of(0) is not None and test.path_of(0) is not None:
        return equal_files(train, test)
    return [], "nothing: the images of one are files, those of the other are not"


def equal_images(train: Tensor, test: Tensor) -> list[int]:
    """Returns the indices of the test images that are equal to a training image in every byte.

    Args:
        train: uint8 (M, C, H, W).
        test: uint8 (N, C, H, W), of the same size.
    """
    bank, hashes = hash_images(train), hash_images(test)
    order = bank.argsort()
    bank = bank[order]
    nearest = torch.searchsorted(bank, hashes).clamp_max(len(bank) - 1)
    candidates = (bank[nearest] == hashes).nonzero().flatten().tolist()
    return [index for index in candidates if torch.equal(train[order[nearest[index]]], test[index])]


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


def equal_files(train: Dataset, test: Dataset) -> tuple[list[int], str]:
    """Returns the indices of the test files that are training files too, and how they were compared."""
    known: set[tuple[int, int]] = set()
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, state in _files(train):
        known.add((state.st_dev, state.st_ino))
        by_size[state.st_size].append(path)
    shared, rest = [], []
    for index, (path, state) in enumerate(_files(test)):
        if (state.st_dev, state.st_ino) in known:
            shared.append(index)
        elif state.st_size and state.st_size in by_size:
            rest.append((index, path, state.st_size))
    sizes = {size for _, _, size in rest}
    to_read = sum(size for _, _, size in rest) + sum(size * len(by_size[size]) for size in sizes)
    if to_read > CONTENT_BYTES:
        return shared, "the files, through links"
    contents = {_digest(path) for size in sizes for path in by_size[size]} - {None}
    shared += [index for index, path, _ in rest if _digest(path) in contents]
    return sorted(shared), "the files, through links, and the bytes of those of equal size"


def _files(data: Dataset) -> list[tuple[Path, os.stat_result]]:
    """Path and state, links followed, of each image; a missing file has a state of its own."""
    found = []
    for index in range(len(data)):
        path = data.path_of(index)
        assert path is not None
        try:
            found.append((path, path.stat()))
        except OSError:  # reported when it is read
            found.append((path, os.stat_result((0, -1 - index, -1, 0, 0, 0, 0, 0, 0, 0))))
    return found


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
