"""What identifies the images of a run, so that a resumed run notices that they have changed.

Cheap, and the same on every machine: names and sizes of files, without their folder, times and contents; of images in
memory a part of their pixels.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from sslcli.contracts.data import Dataset, StreamDataset

from .files import FileDataset
from .lanes import images_per_epoch
from .subset import fixed_choice

#: Files whose sizes are looked at, at most, and names that are asked for one by one: a fixed choice of more.
_FILES = 100_000
#: Bytes of images in memory that are looked at: a fixed choice of more.
_BYTES = 16 * 2**20


def identify(dataset: Dataset | StreamDataset, images: Tensor | None = None) -> dict[str, Any]:
    """Returns what identifies a dataset, as JSON data.

    Args:
        dataset: as it is trained on.
        images: all of them, uint8 (N, C, H, W), if they are in memory.

    Returns:
        `images`: how many are one epoch. `files`: a digest of the files' names and sizes, of images in memory their
        shape and pixels, of a stream the names and sizes of its shards. `labels`: a digest, null without labels.
        `classes`: their names, null if there are none.
    """
    classes = None if dataset.info.classes is None else list(dataset.info.classes)
    if isinstance(dataset, StreamDataset):
        shards = [f"{name} {dataset.shard_size(index)}" for index, name in enumerate(dataset.shards)]
        digest = hashlib.sha256(os.fsencode("\0".join([*shards, str(dataset.length)])))
        return {"images": images_per_epoch(dataset), "files": _short(digest), "labels": None, "classes": classes}
    labels = None
    if dataset.labels is not None:
        labels = _short(hashlib.sha256(dataset.labels.cpu().contiguous().numpy().data))
    return {"images": len(dataset), "files": _short(_of_images(dataset, images)), "labels": labels, "classes": classes}


def _of_images(dataset: Dataset, images: Tensor | None) -> Any:
    chosen = fixed_choice(len(dataset), _FILES)
    digest = hashlib.sha256(str(len(dataset)).encode())
    if isinstance(dataset, FileDataset):
        digest.update(dataset.files.digest())  # all names
        folder = os.fsencode(dataset.folder)
        for name in dataset.files.encoded(chosen):
            digest.update(b"%d\n" % _size(os.path.join(folder, name)))
    elif dataset.path_of(0) is not None:
        for index in chosen.tolist():
            path = dataset.path_of(index)
            assert path is not None
            digest.update(os.fsencode(f"{path.name}\0{_size(path)}\n"))
    elif images is not None:
        rows = max(1, _BYTES // max(images[0].nbytes, 1))
        pixels = images[fixed_choice(len(images), rows).to(images.device)]
        digest.update(f"{tuple(images.shape)}".encode())
        digest.update(pixels.cpu().contiguous().numpy().data)
    else:
        digest.update(os.fsencode("\0".join(dataset.name_of(index) for index in chosen.tolist())))
    return digest


def _size(path: Path | bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # whoever reads it will say so
        return -1


def _short(digest: Any) -> str:
    text: str = digest.hexdigest()
    return text[:16]
