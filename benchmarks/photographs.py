"""Photographs per second that one core decodes and crops for two views, compared with lightly and torchvision.

    python benchmarks/photographs.py FOLDER [--size 224] [--count 200] [--repeats 5] [--output NAME]

`ours` is a worker's share: each photograph is decoded once and cropped for both views. `ours_cached` is the same with
`data.cache=disk`, after the cache was written (`cache` has the cost). The device does the rest; `color` is its cost on
this core. `lightly` is its worker's share: an item of its `LightlyDataset` with its `SimCLRTransform`, if it is
installed (`pip install 'sslcli[benchmark]'`). `torchvision` is the usual way: decode once, then the whole recipe twice,
on the Pillow image; `torchvision_crop` is the part of it that `ours` does.

All alternate in one process with one thread, on the same photographs, whose files are in the system's cache after the
first round. Results are medians with the extremes, ratios are those of processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from others import DIFFERENCES, lightly_views, torchvision_views
from PIL import Image
from report import NOT_INSTALLED, circumstances, is_installed, measure, publish, ratios
from views import MEAN, STD, our_views

from sslcli.data.cache.dataset import CachedDataset, open_cached
from sslcli.data.crops import Cropper, Crops, Slice, split_views, wanted_side
from sslcli.data.files import FileDataset
from sslcli.data.workers import SLICE
from sslcli.datasets.images import Images, ImagesOptions
from sslcli.views.pipeline import ViewMaker

#: Photographs per round for what processes tens per second.
SLOW = 48


def lightly_items(data: FileDataset, size: int, view: dict[str, Any]) -> Callable[[int], Any]:
    """Returns a function that gets a photograph with both views from lightly's dataset.

    Raises:
        SystemExit: lightly does not find all photographs.
    """
    from lightly.data import LightlyDataset

    dataset = LightlyDataset(str(data.folder), transform=lightly_views(size, view, MEAN, STD))
    indices = {name: index for index, name in enumerate(dataset.get_filenames())}
    missing = [name for name in data.files if name not in indices]
    if missing:
        raise SystemExit(f"FOLDER: lightly does not find {missing[0]}; put all photographs into subfolders, or none")
    return lambda index: dataset[indices[data.files[index]]]


def parts(cropper: Cropper, count: int) -> dict[str, float]:
    """Milliseconds of one core per photograph, for each of the calls that a worker makes."""
    spent = dict.fromkeys(("decode", "draw", "crop", "worker"), 0.0)
    for start in range(0, count, SLICE):
        indices = list(range(start, min(start + SLICE, count)))
        clock = time.process_time()
        images = [cropper.dataset.image_for(index, wanted_side(cropper.views)) for index in indices]
        spent["decode"] += time.process_time() - clock
        clock = time.process_time()
        sizes = torch.tensor([image.shape[-2:] for image in images])
        draws = cropper.views.draw(0, torch.tensor(indices), sizes, crops_only=True)
        spent["draw"] += time.process_time() - clock
        clock = time.process_time()
        for row, image in enumerate(images):
            cropper.views.crop_one(image, draws, row)
        spent["crop"] += time.process_time() - clock
        clock = time.process_time()
        cropper[Slice(0, start, indices)]
        spent["worker"] += time.process_time() - clock
    spent["rest"] = spent["worker"] - spent["decode"] - spent["draw"] - spent["crop"]
    return {name: round(seconds / count * 1000, 3) for name, seconds in spent.items()}


def crop_all(cropper: Cropper, epoch: int, count: int) -> list[Crops]:
    """A worker's work on the first photographs, slice by slice."""
    starts = range(0, count, SLICE)
    return [cropper[Slice(epoch, start, list(range(start, min(start + SLICE, count))))] for start in starts]


def cached_photographs(options: ImagesOptions, views: ViewMaker, folder: Path) -> CachedDataset:
    """Writes `data.cache=disk` into a folder, as `ssl train` does before its first step."""
    asked = options.model_copy(update={"cache": "disk", "cache_dir": folder})
    cached = open_cached(Images(asked), wanted_side(views), passes=200, workers="auto")
    assert isinstance(cached, CachedDataset)
    cached.prepare()
    return cached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a tree of photographs")
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    parser.add_argument("--count", type=int, default=200, help="photographs a round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = ImagesOptions(root=arguments.folder, limit=arguments.count)
    data = Images(options)
    count, slow = len(data), min(len(data), SLOW)
    views, recipe = our_views(arguments.size)
    cropper = Cropper(data, views, 0)
    transforms = {
        crop_only: torchvision_views(arguments.size, recipe, MEAN, STD, crop_only=crop_only)
        for crop_only in (False, True)
    }
    kept: list[Crops] = []

    def ours(epoch: int) -> None:
        kept[:] = crop_all(cropper, epoch, count)

    def color(epoch: int) -> None:
        crops = kept[0]
        images = split_views(crops.buffer, len(crops.index), cropper.shapes(crops.slice.step))
        views.apply(images, views.draw(epoch, torch.arange(len(crops.index)), None), cropped=True)

    def per_sample(crop_only: bool) -> None:
        for index in range(slow):
            with Image.open(data.folder / data.files[index]) as file:
                image = file.convert("RGB")
            _ = transforms[crop_only](image), transforms[crop_only](image)

    ways: dict[str, Callable[[int], Any]] = {
        "ours": ours,
        "torchvision_crop": lambda epoch: per_sample(True),
        "color": color,
        "torchvision": lambda epoch: per_sample(False),
    }
    images = {"ours": count, "torchvision_crop": slow, "color": min(SLICE, count), "torchvision": slow}
    if is_installed("lightly"):
        item = lightly_items(data, arguments.size, recipe)
        ways["lightly"], images["lightly"] = lambda epoch: [item(index) for index in range(slow)], slow
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cached = Cropper(cached_photographs(options, views, Path(folder)), views, 0)
        written = {
            "shorter_side": options.cache_size,
            "seconds": round(time.perf_counter() - began, 2),
            "bytes": sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()),
        }
        ways["ours_cached"], images["ours_cached"] = lambda epoch: crop_all(cached, epoch, count), count
        speeds = measure(ways, images, arguments.repeats)
        spent = {"ours": parts(cropper, count), "ours_cached": parts(cached, count)}
    absent = {} if "lightly" in ways else {"lightly": NOT_INSTALLED}
    report = {
        "what": "photographs per second that become SimCLR's two views: ours decodes and crops, ours_cached crops, "
        "torchvision_crop decodes and crops; color is the rest of the recipe on this core, lightly and torchvision "
        "do all of it",
        **{kind: values | absent for kind, values in speeds.items()},
        "ratios": ratios(
            speeds["images_per_core_second"], ("ours", "ours_cached"), ("lightly", "torchvision", "torchvision_crop")
        ),
        "differences": {"lightly": DIFFERENCES["lightly"]} if "lightly" in ways else {},
        "milliseconds_per_photograph": spent,
        "cache": written,
        "size": arguments.size,
        "photographs": count,
        "megapixels": round(
            sum(image.shape[1] * image.shape[2] for image in map(data.image, range(slow))) / slow / 1e6, 3
        ),
        "repeats": arguments.repeats,
        **circumstances("lightly"),
    }
    publish(report, arguments.output)


if __name__ == "__main__":
    main()
