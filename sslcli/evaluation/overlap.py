"""Test images that are training images too: found by their files or their bytes, before anything runs.

Such images are recognized, not classified, which makes any number too good. Common datasets have a few of them
(CIFAR-10 has near-duplicates in both parts, web collections exact ones), so a few are reported and many are refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError

log = logging.getLogger(__name__)

#: If more than this fraction of the test images is shared, the evaluation is rejected.
LIMIT = 0.01
#: Files of equal size are compared by content up to this many bytes in total; beyond, only by identity.
CONTENT_BYTES = 1 << 28


def check_overlap(train: Dataset, test: Dataset) -> dict[str, Any]:
    """Looks for test images among the training images; warns about a few, and raises if there are many.

    Returns:
        what the protocol says of it.

    Raises:
        UserError: more than 1% of the test images are training images too.
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
        known = {_image_digest(image) for image in ours} if ours.shape[1:] == theirs.shape[1:] else set()
        return [index for index, image in enumerate(theirs) if _image_digest(image) in known], "the images' bytes"
    if train.path_of(0) is not None and test.path_of(0) is not None:
        return _equal_files(train, test)
    return [], "nothing: the images of one are files, those of the other are not"


def _image_digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.cpu().numpy().tobytes()).digest()


def _equal_files(train: Dataset, test: Dataset) -> tuple[list[int], str]:
    known: set[tuple[int, int]] = set()
    by_size: dict[int, list[Path]] = defaultdict(list)
    for _, path, state in _files(train):
        known.add((state.st_dev, state.st_ino))
        by_size[state.st_size].append(path)
    shared, rest = [], []
    for index, path, state in _files(test):
        if (state.st_dev, state.st_ino) in known:
            shared.append(index)
        elif state.st_size and state.st_size in by_size:
            rest.append((index, path, state.st_size))
    sizes = {size for _, _, size in rest}
    to_read = sum(size for _, _, size in rest) + sum(size * len(by_size[size]) for size in sizes)
    if to_read > CONTENT_BYTES:
        return shared, "the files, through links"
    contents = {_file_digest(path) for size in sizes for path in by_size[size]} - {None}
    shared += [index for index, path, _ in rest if _file_digest(path) in contents]
    return sorted(shared), "the files, through links, and the bytes of those of equal size"


def _files(data: Dataset) -> Iterator[tuple[int, Path, os.stat_result]]:
    """Yields index, path and state, links followed, of each image; missing files are reported when they are read."""
    for index in range(len(data)):
        path = data.path_of(index)
        assert path is not None
        with suppress(OSError):
            yield index, path, path.stat()


def _file_digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
