"""Mean and standard deviation of datasets that have no published ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sslcli.contracts.data import channel_statistics
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.storage import read_regular, write_text

from .decode import decode
from .paths import fingerprint, user_cache
from .subset import fixed_choice

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

#: By channels: what most published ImageNet weights were trained with; for gray their luma, roughly.
IMAGENET: dict[int, Statistics] = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.459,), (0.226,)),
}
_SAMPLE = 2000
#: JPEGs are measured at a reduced size, at least this; averaging pixels does not change the mean.
_SIDE = 256


def measure(folder: Path, files: Sequence[str], channels: int) -> Statistics:
    """Returns mean and standard deviation per channel, in [0, 1], with equal weight for each image.

    Up to 2,000 images are sampled, always the same ones of the same list. The result is kept in the user's cache
    folder (`user_cache`) until one of them changes in name, size or modification time.

    Args:
        folder: what `files` are relative to.
        files: image files.
        channels: 1 or 3.

    Raises:
        UserError: if none of them can be read.
    """
    names = [files[index] for index in fixed_choice(len(files), _SAMPLE).tolist()]
    key = fingerprint(folder, names, b"%d" % channels).hex()[:16]
    file = user_cache() / f"normalization-{key}.json"
    stored = _stored(file, channels)
    if stored is not None:
        return stored
    mean, std = sampled(folder, len(names), lambda index: decode(folder / names[index], channels, _SIDE))
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"mean": mean, "std": std}))
    return mean, std


def _stored(file: Path, channels: int) -> Statistics | None:
    """What a file of the cache holds; None if there is none, or it holds anything but these values."""
    try:
        values = torch.tensor([json.loads(read_regular(file))[name] for name in ("mean", "std")], dtype=torch.float64)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if values.shape != (2, channels) or not ((values >= 0) & (values <= 1)).all() or not values[1].all():
        return None
    mean, std = values.tolist()
    return tuple(mean), tuple(std)


def sampled(source: object, count: int, read: Callable[[int], Tensor], *, threads: bool = True) -> Statistics:
    """Returns mean and standard deviation, with 6 decimals, of up to 2,000 images of equal weight.

    Args:
        source: where the images are from, for messages.
        count: how many there are.
        read: index → uint8 (channels, H, W).
        threads: call it from several threads (decoders release the interpreter's lock), not from this one.

    Raises:
        UserError: if none of them can be read.
    """
    indices = fixed_choice(count, _SAMPLE).tolist()

    def moments(index: int) -> Tensor | None:
        """The mean of the pixels and of their squares, float64 (2, channels)."""
        try:
            mean, std = torch.tensor(channel_statistics(read(index)[None]), dtype=torch.float64)
        except UnreadableImage:
            return None
        return torch.stack([mean, std.square() + mean.square()])

    with ThreadPoolExecutor() as pool:
        found = [each for each in (pool.map if threads else map)(moments, indices) if each is not None]
    if not found:
        raise UserError(f"data.normalization: none of the {len(indices)} images sampled in {source} can be read")
    mean, square = torch.stack(found).mean(0)
    std = (square - mean.square()).clamp_min(1e-12).sqrt()
    return tuple(round(value, 6) for value in mean.tolist()), tuple(round(value, 6) for value in std.tolist())
