"""Items of a user's own dataset → uint8 pixels and a label: PIL images, arrays or tensors, alone or in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data
from PIL import Image
from torch import Tensor

from ..decode import eight_bit

#: Keys of items that are mappings.
_IMAGE_KEYS, _LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels")
#: Names under which datasets have the labels of all items; the last is in some of torchvision's.
_ATTRIBUTES = ("targets", "labels", "_labels")
#: Floating-point pixels may leave [0, 1] by this much: resizing filters overshoot a little.
_TOLERANCE = 0.02

Label = int | str


def split_item(item: Any) -> tuple[Any, Label | None]:
    """Returns image and label of an item: the image alone, (image, label, …), or a mapping with `image` and `label`.

    A label is an integer ≥ 0 or a name; anything else (boxes, several labels, −1) is ignored.
    """
    if isinstance(item, Mapping):
        key = next((key for key in _IMAGE_KEYS if key in item), None)
        if key is None:
            raise ValueError(f"a mapping without the key {_IMAGE_KEYS[0]!r}; it has {', '.join(map(repr, item))}")
        return item[key], as_label(next((item[key] for key in _LABEL_KEYS if key in item), None))
    if isinstance(item, tuple | list):
        if not item:
            raise ValueError("an empty tuple")
        return item[0], as_label(item[1]) if len(item) > 1 else None
    return item, None


def as_label(value: Any) -> Label | None:
    """Returns a label as an integer ≥ 0 or a name; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if value.ndim or torch.is_floating_point(torch.as_tensor(value)):
            return None
        value = int(value)
    return int(value) if isinstance(value, int) and value >= 0 else None


def channels_of(image: Any) -> int:
    """Returns 1 for a gray image, 3 for any other."""
    if isinstance(image, Image.Image):
        return 1 if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16") else 3
    return 1 if len(_planes(image)) == 1 else 3


def to_pixels(image: Any, channels: int) -> Tensor:
    """Turns an image into uint8 (channels, H, W) on the CPU.

    Args:
        image: PIL of any mode; an array (H, W) or (H, W, C); a tensor (H, W) or (C, H, W). Arrays and tensors are
            uint8, or floating point in [0, 1]. A fourth channel is transparency, composited on white.
        channels: 3, or 1 for gray (ITU-R 601 luma).

    Raises:
        ValueError: it is none of these; the message says what it is.
    """
    if isinstance(image, Image.Image):
        array = np.array(eight_bit(image, "RGB" if channels == 3 else "L"))
        return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)
    pixels = _bytes(_planes(image))
    if len(pixels) == 4:
        alpha = pixels[3:].int()
        pixels = ((pixels[:3].int() * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    gray = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).convert("L")
    return torch.from_numpy(np.array(gray))[None]


def _planes(image: Any) -> Tensor:
    """An array or a tensor as a tensor (1, 3 or 4, H, W), of any type."""
    if isinstance(image, np.ndarray):
        shape, form = image.shape, "an array is (H, W) or (H, W, C)"
        planes = torch.as_tensor(np.ascontiguousarray(image))
        planes = planes.permute(2, 0, 1) if planes.ndim == 3 else planes
    elif isinstance(image, Tensor):
        shape, form = tuple(image.shape), "a tensor is (H, W) or (C, H, W)"
        planes = image.detach().cpu()
    else:
        raise ValueError(f"a {type(image).__name__} is not an image; give a PIL image, an array or a tensor")
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or planes.shape[0] not in (1, 3, 4) or not planes.numel():
        raise ValueError(f"{form}, with 1, 3 or 4 channels; this one is {tuple(shape)}")
    return planes


def _bytes(planes: Tensor) -> Tensor:
    if planes.dtype == torch.uint8:
        return planes
    if not planes.is_floating_point():
        raise ValueError(f"pixels of type {planes.dtype} have no known range; give uint8, or floats in [0, 1]")
    low, high = float(planes.min()), float(planes.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ValueError(
            f"floating-point pixels are in [0, 1], these reach from {low:.3g} to {high:.3g}; leave any normalization "
            "to sslcli"
        )
    return (planes.float() * 255).round().clamp(0, 255).to(torch.uint8)


def declared_labels(dataset: Any) -> list[Label] | None:
    """Returns the labels of all items if the dataset has them apart from its items: `targets`, `labels`.

    Looks through torch's `Subset` and `ConcatDataset`. None if there are none, if they are neither integers ≥ 0 nor
    names (STL-10's unlabeled images have −1), and if a `target_transform` would change them.
    """
    if isinstance(dataset, torch.utils.data.Subset):
        inside = declared_labels(dataset.dataset)
        return None if inside is None else [inside[index] for index in dataset.indices]
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [declared_labels(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts if part is not None for label in part]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return _as_labels(dataset.tensors[1] if len(dataset.tensors) > 1 else None, len(dataset))
    found = (_as_labels(getattr(dataset, name, None), len(dataset)) for name in _ATTRIBUTES)
    return next((labels for labels in found if labels is not None), None)


def _as_labels(values: Any, length: int) -> list[Label] | None:
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != length:
        return None
    labels = [label for label in map(as_label, values) if label is not None]
    return labels if len(labels) == length else None


def declared_classes(dataset: Any) -> list[str] | None:
    """Returns the class names if the dataset has a list of them; looks through torch's `Subset` and the like."""
    if isinstance(dataset, torch.utils.data.Subset):
        return declared_classes(dataset.dataset)
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        return declared_classes(dataset.datasets[0])
    classes = getattr(dataset, "classes", None)
    return [str(each) for each in classes] if isinstance(classes, list | tuple) else None
