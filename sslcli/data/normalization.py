"""Mean and standard deviation of data sets that have no published ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sslcli.contracts.data import channel_statistics
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.storage import write_text

from .decode import decode
from .paths import user_cache
from .subset import fixed_choice

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

#: By channels: what most published ImageNet weights were trained with; for gray their luma, roughly.
IMAGENET: dict[int, Statistics] = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.459,), (0.226,)),
}
SAMPLE = 2000
#: JPEGs are measured at a reduced size, at least this; averaging pixels does not change the mean.
_SIDE = 256


def measure(folder: Path, files: Sequence[str], channels: int, cache: Path | None = None) -> Statistics:
    """Returns mean and standard deviation per channel, in [0, 1], with equal weight for each image.

    Up to 2,000 images are sampled, always the same ones of the same list. The result is kept in the user's cache
    folder until one of them changes in name, size or modification time.

    Args:
        folder: what `files` are relative to.
        files: image files.
        channels: 1 or 3.
        cache: where to keep results; default: sslcli/ in `$XDG_CACHE_HOME` or ~/.cache.

    Raises:
        UserError: if none of them can be read.
    """
    paths = [folder / files[index] for index in fixed_choice(len(files), SAMPLE).tolist()]
    file = (cache or user_cache()) / f"normalization-{_key(paths, channels)}.json"
    try:
        stored = json.loads(file.read_text())
        return tuple(stored["mean"]), tuple(stored["std"])
    except (OSError, ValueError, KeyError):
        pass
    with ThreadPoolExecutor() as pool:  # decoders release the interpreter's lock
        moments = [found for found in pool.map(lambda path: _moments(path, channels), paths) if found is not None]
    if not moments:
        raise UserError(f"data.normalization: none of the {len(paths)} images sampled in {folder} can be read")
    mean, std = pooled(moments)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"mean": mean, "std": std}))
    return mean, std


def pooled(moments: Sequence[Tensor]) -> Statistics:
    """Returns mean and standard deviation, with 6 decimals, over images of equal weight.

    Args:
        moments: for each image (2, channels) float64, the mean of its pixels and of their squares.
    """
    mean, square = torch.stack(list(moments)).mean(0)
    std = (square - mean.square()).clamp_min(1e-12).sqrt()
    return tuple(round(value, 6) for value in mean.tolist()), tuple(round(value, 6) for value in std.tolist())


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
    try:
        statistics = channel_statistics(decode(path, channels, _SIDE)[None])
    except UnreadableImage:
        return None
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in statistics)
    return torch.stack([mean, std.square() + mean.square()])
