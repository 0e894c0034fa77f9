"""Measures how many photographs a second one core decodes and crops for two views, beside torchvision per sample.

    python benchmarks/photographs.py FOLDER [--size 224] [--count 200] [--repeats 5] [--output NAME]

`ours` is what a worker does: each photograph is decoded once and cropped for both views. The device does the rest;
`colour` is what that costs where this core is the device. `torchvision` is the usual way: decoded once, then the whole
recipe twice, on the Pillow image; `torchvision_crop` is the part of it that `ours` does. All run in turn in one process
with one thread; figures are medians with the extremes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from views import MEAN, RESULTS, STD, measure, our_views, processor

from sslcli.data.crops import Cropper, Crops, Slice, split_views
from sslcli.data.folder import Images, ImagesOptions
from sslcli.data.workers import SLICE


def torchvision_way(size: int, view: dict[str, Any], crop_only: bool) -> Callable[[Image.Image], Tensor]:
    """The same recipe for one Pillow image."""
    jitter = {name: view["jitter"][name] for name in ("brightness", "contrast", "saturation", "hue")}
    kernel = 2 * (int(size * 0.1) // 2) + 1
    crop: list[Any] = [
        v2.RandomResizedCrop(size, tuple(view["crop_scale"]), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(view["flip"]),
    ]
    if crop_only:
        return v2.Compose([*crop, v2.ToImage()])
    colour: list[Any] = [
        v2.RandomApply([v2.ColorJitter(**jitter)], view["jitter"]["p"]),
        v2.RandomGrayscale(view["grayscale"]),
        v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], 0.5),
    ]
    return v2.Compose([*crop, *colour, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def parts(cropper: Cropper, count: int) -> dict[str, float]:
    """Milliseconds of one core per photograph: the same calls as a worker makes, timed apart."""
    spent = dict.fromkeys(("decode", "draw", "crop", "worker"), 0.0)
    for start in range(0, count, SLICE):
        places = list(range(start, min(start + SLICE, count)))
        clock = time.process_time()
        images = [cropper.dataset.image_for(place, cropper.wanted) for place in places]
        spent["decode"] += time.process_time() - clock
        clock = time.process_time()
        sizes = torch.tensor([image.shape[-2:] for image in images])
        draws = cropper.views.draw(0, torch.tensor(places), sizes, crops_only=True)
        spent["draw"] += time.process_time() - clock
        clock = time.process_time()
        for row, image in enumerate(images):
            cropper.views.crop_one(image, draws, row)
        spent["crop"] += time.process_time() - clock
        clock = time.process_time()
        cropper[Slice(0, start, places)]
        spent["worker"] += time.process_time() - clock
    spent["rest"] = spent["worker"] - spent["decode"] - spent["draw"] - spent["crop"]
    return {name: round(seconds / count * 1000, 3) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a tree of photographs")
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    parser.add_argument("--count", type=int, default=200, help="photographs a round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Images(ImagesOptions(root=arguments.folder, limit=arguments.count))
    count = len(data)
    views, recipe = our_views(arguments.size)
    cropper = Cropper(data, views, 0)
    transforms = {crop_only: torchvision_way(arguments.size, recipe, crop_only) for crop_only in (False, True)}
    some = range(min(count, 48))  # the slow ways cost the same for each sample
    kept: list[Crops] = []

    def ours(epoch: int) -> None:
        kept[:] = [
            cropper[Slice(epoch, start, list(range(start, min(start + SLICE, count))))]
            for start in range(0, count, SLICE)
        ]

    def colour(epoch: int) -> None:
        crops = kept[0]
        images = split_views(crops.buffer, len(crops.index), cropper.shapes)
        views.apply(images, views.draw(epoch, torch.arange(len(crops.index)), None), cropped=True)

    def per_sample(crop_only: bool) -> None:
        for place in some:
            with Image.open(data.folder / data.files[place]) as file:
                image = file.convert("RGB")
            _ = transforms[crop_only](image), transforms[crop_only](image)

    ways: dict[str, Callable[[int], None]] = {
        "ours": ours,
        "torchvision_crop": lambda epoch: per_sample(True),
        "colour": colour,
        "torchvision": lambda epoch: per_sample(False),
    }
    images = {"ours": count, "torchvision_crop": len(some), "colour": min(SLICE, count), "torchvision": len(some)}
    report = {
        "what": "photographs per second that become SimCLR's two views: ours decodes and crops, torchvision_crop too; "
        "colour is the rest of the recipe on this core, torchvision all of it",
        **measure(ways, images, arguments.repeats),
        "milliseconds_per_photograph": parts(cropper, count),
        "size": arguments.size,
        "photographs": count,
        "megapixels": round(
            sum(image.shape[1] * image.shape[2] for image in map(data.image, some)) / len(some) / 1e6, 3
        ),
        "repeats": arguments.repeats,
        "load_average": round(os.getloadavg()[0], 1),
        "processor": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }
    print(json.dumps(report, indent=2))
    if arguments.output:
        RESULTS.mkdir(exist_ok=True)
        path = (RESULTS / arguments.output).with_suffix(".json")
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
