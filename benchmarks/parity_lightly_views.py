"""lightly's way from CIFAR-10's files to batches of views, with the parameters of a config of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightly.transforms as transforms
import torch
from lightly.data import LightlyDataset
from lightly.transforms import byol_transform
from torch import Tensor
from torchvision.datasets import CIFAR10

from sslcli.config.resolve import RunConfig
from sslcli.contracts.views import ViewSpec
from sslcli.data.subset import stratified_choice


def views_transform(config: RunConfig, mean: Iterable[float], std: Iterable[float]) -> Any:
    """Returns lightly's transform of the method with the parameters of our views."""
    views = [spec for spec in config.views for _ in range(spec.count)]
    first, second = (_arguments(view, mean, std) for view in views)
    name = config.method.name
    if name in ("byol", "barlow_twins"):
        return transforms.BYOLTransform(
            byol_transform.BYOLView1Transform(**first, solarization_prob=_p(views[0], "solarize")),
            byol_transform.BYOLView2Transform(**second, solarization_prob=_p(views[1], "solarize")),
        )
    if name == "dino":
        # Its second view has a strength of .5 whatever is asked for.
        second |= {key: 2 * second[key] for key in ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")}
        size, low = second.pop("input_size"), second.pop("min_scale")
        return transforms.DINOTransform(
            **second | {"gaussian_blur": (0.0, 0.0, 0.0), "cj_strength": 0.5}, global_crop_size=size,
            global_crop_scale=(low, 1.0), n_local_views=0, solarization_prob=_p(views[1], "solarize"),
        )  # fmt: skip
    if name == "swav":
        size, low = first.pop("input_size"), first.pop("min_scale")
        crops = {"crop_min_scales": (low,), "crop_max_scales": (1.0,), "crop_counts": (2,), "crop_sizes": (size,)}
        return transforms.SwaVTransform(**first, **crops)
    if name == "vicreg":
        return transforms.VICRegTransform(**first, solarize_prob=_p(views[0], "solarize"))
    return {"simclr": transforms.SimCLRTransform, "simsiam": transforms.SimSiamTransform,
            "moco_v2": transforms.MoCoV2Transform}[name](**first)  # fmt: skip


def _options(view: ViewSpec, name: str) -> dict[str, Any]:
    return next((dict(each.options) for each in view.operations if each.name == name), {"p": 0.0})


def _p(view: ViewSpec, name: str) -> float:
    return _options(view, name)["p"]


def _arguments(view: ViewSpec, mean: Iterable[float], std: Iterable[float]) -> dict[str, Any]:
    jitter, crop = _options(view, "jitter"), _options(view, "crop")
    return {
        "input_size": view.size, "min_scale": crop["scale"][0], "hf_prob": _p(view, "flip"),
        "cj_prob": jitter["p"], "cj_strength": 1.0, "cj_bright": jitter["brightness"],
        "cj_contrast": jitter["contrast"], "cj_sat": jitter["saturation"], "cj_hue": jitter["hue"],
        "random_gray_scale": _p(view, "grayscale"), "gaussian_blur": _p(view, "blur"),
        "normalize": {"mean": list(mean), "std": list(std)},
    }  # fmt: skip


def batches(config: RunConfig, root: Path, mean: Iterable[float], std: Iterable[float]) -> Iterator[list[Tensor]]:
    """Yields the views of each batch of all epochs, from lightly's dataset and torch's loader with two workers."""
    data = CIFAR10(root)
    chosen = stratified_choice(torch.tensor(data.targets), config.data.options.limit).numpy()
    data.data, data.targets = data.data[chosen], [data.targets[i] for i in chosen]
    dataset = LightlyDataset.from_torch_dataset(data, transform=views_transform(config, mean, std))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=config.training.batch_size, shuffle=True, drop_last=True, num_workers=2
    )
    for _ in range(config.training.epochs):
        for views, _, _ in loader:
            yield views
