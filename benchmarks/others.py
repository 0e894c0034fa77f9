"""SimCLR's views of torchvision, lightly, lightly-train and stable-pretraining with the parameters of our preset.

All but the first are optional: `pip install 'sslcli[benchmark]' stable-pretraining`. Their own classes are used;
`RecipeDiffers` is raised if these have other parameters than ours. `DIFFERENCES` lists the remaining differences.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms import v2

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

#: What cannot be set in their classes.
DIFFERENCES = {
    "lightly": "bilinear instead of bicubic crops; blur with Pillow's box approximation",
    "lightly_train": "area instead of bicubic crops; the blur's kernel follows its sigma",
    "stable_pretraining": "blur with Pillow's box approximation",
}
SIGMAS = (0.1, 2.0)  # of the blur, in the paper and in all of them
_AMOUNTS = ("brightness", "contrast", "saturation", "hue")


class RecipeDiffers(Exception):
    """Another package's views have other parameters than ours."""


def torchvision_views(
    size: int, view: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...], *, crop_only: bool = False
) -> Callable[[Any], Tensor]:
    """Returns a torchvision transform: a uint8 image, as a tensor or of Pillow → one view (3, size, size).

    Args:
        size: side of the view in pixels.
        view: our preset's description of its views.
        mean: per channel.
        std: per channel.
        crop_only: only crop and flip, without normalization.
    """
    jitter = {name: view["jitter"][name] for name in _AMOUNTS}
    steps: list[Any] = [
        v2.RandomResizedCrop(size, tuple(view["crop_scale"]), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(view["flip"]),
    ]
    if crop_only:
        return v2.Compose([*steps, v2.PILToTensor()])
    steps += [v2.RandomApply([v2.ColorJitter(**jitter)], view["jitter"]["p"]), v2.RandomGrayscale(view["grayscale"])]
    if view["blur"]:
        kernel = 2 * (int(size * view["blur"]["kernel"]) // 2) + 1
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, SIGMAS)], view["blur"]["p"]))
    return v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def lightly_views(
    size: int, view: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Image.Image], list[Tensor]]:
    """Returns lightly's `SimCLRTransform`: a Pillow image → two views (3, size, size).

    Args:
        size: side of the views in pixels.
        view: our preset's description of its views.
        mean: per channel.
        std: per channel.

    Raises:
        RecipeDiffers: a parameter differs from ours.
    """
    from lightly.transforms import SimCLRTransform

    jitter, (brightness, contrast, saturation, hue) = view["jitter"], _amounts(view)
    transform = SimCLRTransform(
        input_size=size, min_scale=view["crop_scale"][0], hf_prob=view["flip"],
        cj_prob=jitter["p"], cj_strength=1.0, cj_bright=brightness, cj_contrast=contrast, cj_sat=saturation, cj_hue=hue,
        random_gray_scale=view["grayscale"], gaussian_blur=_blur_probability(view), sigmas=SIGMAS,
        normalize={"mean": list(mean), "std": list(std)},
    )  # fmt: skip
    first, second = transform.transforms
    steps = {type(step).__name__: step for step in first.transform.transforms}
    (color,) = steps["RandomApply"].transforms
    _compare(size, view, {
        "same for both views": first is second,
        "size": steps["RandomResizedCrop"].size,
        "crop_scale": steps["RandomResizedCrop"].scale,
        "flip": steps["RandomHorizontalFlip"].p,
        "jitter.p": steps["RandomApply"].p,
        **{name: getattr(color, name) for name in _AMOUNTS},
        "grayscale": steps["RandomGrayscale"].p,
        "blur": steps["GaussianBlur"].prob,
    })  # fmt: skip
    return transform


def lightly_train_views(
    size: int, view: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...], threads: int = 1
) -> Callable[[np.ndarray], list[Tensor]]:
    """Returns lightly-train's `SimCLRTransform`: an array (H, W, 3) uint8 → two views (3, size, size).

    Args:
        size: side of the views in pixels.
        view: our preset's description of its views.
        mean: per channel.
        std: per channel.
        threads: that OpenCV may use.

    Raises:
        RecipeDiffers: a parameter differs from ours.
    """
    import cv2

    keywords = lightly_train_arguments(size, view, mean, std)
    from lightly_train._methods.simclr import simclr_transform as theirs

    cv2.setNumThreads(threads)
    arguments = theirs.SimCLRTransformArgs(**keywords)
    arguments.resolve_auto()
    arguments.resolve_incompatible()
    transform = theirs.SimCLRTransform(arguments)
    first, second = transform.transforms
    steps = {type(step).__name__: step for step in first.transform.transforms}
    _compare(size, view, {
        "same for both views": first is second,
        "size": steps["RandomResizedCrop"].size,
        "crop_scale": steps["RandomResizedCrop"].scale,
        "flip": steps["HorizontalFlip"].p,
        "jitter.p": steps["ColorJitter"].p,
        **{name: getattr(steps["ColorJitter"], name) for name in _AMOUNTS},
        "grayscale": steps["ToGray"].p,
        "blur": steps["GaussianBlur"].p if "GaussianBlur" in steps else 0.0,
    })  # fmt: skip
    return lambda image: [made["image"] for made in transform({"image": image})]


def lightly_train_arguments(
    size: int, view: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """Returns `transform_args` of lightly-train's SimCLR; call it before lightly-train is imported."""
    # No queries for newer versions and no telemetry.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("LIGHTLY_TRAIN_EVENTS_DISABLED", "1")
    brightness, contrast, saturation, hue = _amounts(view)
    blur = _blur_probability(view)
    return {
        "image_size": (size, size),
        "random_resize": {"min_scale": view["crop_scale"][0], "max_scale": view["crop_scale"][1]},
        "random_flip": {"horizontal_prob": view["flip"]},
        "color_jitter": {
            "prob": view["jitter"]["p"], "strength": 1.0, "brightness": brightness, "contrast": contrast,
            "saturation": saturation, "hue": hue,
        },
        "random_gray_scale": view["grayscale"],
        "gaussian_blur": {"prob": blur, "sigmas": SIGMAS} if blur else None,
        "normalize": {"mean": mean, "std": std},
    }  # fmt: skip


def stable_pretraining_views(
    size: int, view: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns stable-pretraining's transform: a mapping with an `image` of Pillow → `views`, two of such mappings."""
    from stable_pretraining.data import transforms

    blur = _blur_probability(view)
    jitter = {name: view["jitter"][name] for name in _AMOUNTS}
    bicubic = v2.InterpolationMode.BICUBIC
    one = transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((size, size), scale=tuple(view["crop_scale"]), interpolation=bicubic),
        transforms.RandomHorizontalFlip(p=view["flip"]),
        transforms.ColorJitter(**jitter, p=view["jitter"]["p"]),
        transforms.RandomGrayscale(p=view["grayscale"]),
        *([transforms.PILGaussianBlur(sigma=SIGMAS, p=blur)] if blur else []),
        transforms.ToImage(mean=mean, std=std),
    )
    return transforms.MultiViewTransform([one, one])


def _amounts(view: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(view["jitter"][name] for name in _AMOUNTS)


def _blur_probability(view: Mapping[str, Any]) -> float:
    blur = view["blur"]
    return float(blur["p"] if isinstance(blur, Mapping) else blur)


def _compare(size: int, view: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises RecipeDiffers unless the other package's parameters are those of our preset."""
    ours: dict[str, Any] = {
        "same for both views": view["count"] == 2,
        "size": (size, size),
        "crop_scale": tuple(view["crop_scale"]),
        "flip": view["flip"],
        "jitter.p": view["jitter"]["p"],
        "grayscale": view["grayscale"],
        "blur": _blur_probability(view),
    }
    for name, amount in zip(_AMOUNTS, _amounts(view), strict=True):
        # As torchvision has them: a factor around 1, and an angle around 0 for the hue.
        ours[name] = (-amount, amount) if name == "hue" else (max(0.0, 1 - amount), 1 + amount)
    for name, value in ours.items():
        if not _alike(value, theirs[name]):
            raise RecipeDiffers(f"{name}: ours is {value}, theirs {theirs[name]}")


def _alike(one: Any, other: Any) -> bool:
    pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
    return all(math.isclose(first, second) for first, second in pairs)
