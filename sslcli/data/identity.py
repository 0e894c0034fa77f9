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
_FILES = 10_000
#: Bytes of images in memory that are looked at: a fixed choice of more.
_BYTES = 16 * 2**20


def identify(dataset: Dataset | StreamDataset, images: Tensor | None = None) -> dict[str, Any]:
    """Returns what identifies a dataset, as JSON data.

    Args:
        dataset: as it is trained on.
        images: all of them, uint8 (N, C, H, W), if they are in memory.

    Returns:
        `images`: how many are one epoch. `files`: a digest. `kind`: of what, of the names and sizes of `files` or, in a
        stream, of `shards`; of the shape and `pixels` of images in memory; else of `names`. Only digests of one kind
        can be compared: a plugin's images are in memory where they fit, and have nothing but names elsewhere.
        `labels`: a digest, null without labels.
        `classes`: their names, null if there are none.
    """
    classes = None if dataset.info.classes is None else list(dataset.info.classes)
    if isinstance(dataset, StreamDataset):
        shards = [f"{name} {dataset.shard_size(index)}" for index, name in enumerate(dataset.shards)]
        digest = hashlib.sha256(os.fsencode("\0".join([*shards, str(dataset.length)])))
        found = {"images": images_per_epoch(dataset), "files": _short(digest), "kind": "shards"}
        return {**found, "labels": None, "classes": classes}
    labels = None
    if dataset.labels is not None:
        labels = _short(hashlib.sha256(dataset.labels.cpu().contiguous().numpy().data))
    digest, kind = _of_images(dataset, images)
    return {"images": len(dataset), "files": _short(digest), "kind": kind, "labels": labels, "classes": classes}


def _of_images(dataset: Dataset, images: Tensor | None) -> tuple[Any, str]:
    kind = "files"
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
        kind, rows = "pixels", max(1, _BYTES // max(images[0].nbytes, 1))
        pixels = images[fixed_choice(len(images), rows).to(images.device)]
        digest.update(f"{tuple(images.shape)}".encode())
        digest.update(pixels.cpu().contiguous().numpy().data)
    else:
        kind = "names"
        digest.update(os.fsencode("\0".join(dataset.name_of(index) for index in chosen.tolist())))
    return digest, kind


def _size(path: Path | bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # whoever reads it will say so
        return -1


def _short(digest: Any) -> str:
    text: str = digest.hexdigest()
    return text[:16]
