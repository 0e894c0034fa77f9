"""Mean and standard deviation of data sets that don't come with published ones."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sslcli.contracts.data import channel_statistics
from sslcli.contracts.errors import UnreadableImage, UserError

from .decode import decode
from .paths import user_cache
from .subset import stratified_choice

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

#: By channels: the numbers that most published ImageNet weights were trained with; for gray their luma, roughly.
IMAGENET: dict[int, Statistics] = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.459,), (0.226,)),
}
SAMPLE = 2000
#: JPEGs are measured at a reduced size not below this; averaging pixels leaves the mean as it is.
_SIDE = 256


def measure(folder: Path, files: Sequence[str], channels: int, cache: Path | None = None) -> Statistics:
    """Returns mean and standard deviation per channel, in [0, 1], each image counting alike.

    Up to 2,000 images are looked at, always the same ones of the same list. The result is kept in the user's cache
    folder until one of them changes in name, size or time.

    Args:
        folder: what `files` are relative to.
        files: image files.
        channels: 1 or 3.
        cache: where to keep results; default: sslcli/ in `$XDG_CACHE_HOME` or ~/.cache.

    Raises:
        UserError: if none of them can be read.
    """
    chosen = stratified_choice(torch.zeros(len(files), dtype=torch.int64), SAMPLE).tolist()
    paths = [folder / files[place] for place in chosen]
    if cache is None:
        cache = user_cache()
    file = cache / f"normalization-{_key(paths, channels)}.json"
    try:
        stored = json.loads(file.read_text())
        return tuple(stored["mean"]), tuple(stored["std"])
    except (OSError, ValueError, KeyError):
        pass
    with ThreadPoolExecutor() as pool:  # decoders let go of the interpreter's lock
        moments = [found for found in pool.map(lambda path: _moments(path, channels), paths) if found is not None]
    if not moments:
        raise UserError(f"data.normalization: none of the {len(paths)} images looked at in {folder} can be read")
    mean, square = torch.stack(moments).mean(0)
    std = (square - mean.square()).clamp_min(1e-12).sqrt()
    result = tuple(round(value, 6) for value in mean.tolist()), tuple(round(value, 6) for value in std.tolist())
    _keep(file, result)
    return result


def _key(paths: list[Path], channels: int) -> str:
    digest = hashlib.sha256(str(channels).encode())
    for path in paths:
        try:
            state = path.stat()
            digest.update(f"\n{path.resolve()}\t{state.st_size}\t{state.st_mtime_ns}".encode())
        except OSError:
            continue
    return digest.hexdigest()[:16]


def _moments(path: Path, channels: int) -> Tensor | None:
    """(2, channels): mean and mean square; None if the image cannot be read."""
    try:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in _of_one(path, channels))
    except UnreadableImage:
        return None
    return torch.stack([mean, std.square() + mean.square()])


def _of_one(path: Path, channels: int) -> Statistics:
    return channel_statistics(decode(path, channels, _SIDE)[None])


def _keep(file: Path, result: Statistics) -> None:
    """Writes the result, whole or not at all; a cache that cannot be written only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            json.dump({"mean": result[0], "std": result[1]}, temporary)
        os.replace(temporary.name, file)
    except OSError:
        return
