"""Photographs per second that one core turns into SimCLR's two views: ours and those of other packages.

    python benchmarks/photographs.py FOLDER [--size 224] [--count 200] [--repeats 5] [--output photographs-cpu]
    python benchmarks/photographs.py --write-docs      the table of results/photographs-cpu.json in docs/performance.md

The whole recipe, from files to normalized views: `ours_whole` (eager, as on a CPU), `ours_cached_whole`, and those of
the others that are installed (`pip install 'sslcli[benchmark]' stable-pretraining`), whose workers do all of it. Each
decodes a photograph once for both views.

The worker's share: ours leaves the color work to the device, so a worker only decodes and crops (`ours`), or crops what
`data.cache=disk` has (`ours_cached`, after the cache was written; `cache` has the cost). `color` is the rest, if a core
does it. `torchvision_crop` decodes and crops too. Which of the two counts depends on the device: beside a GPU the
share, on a CPU alone the whole.

All alternate in one process with one thread, on the same photographs, whose files are in the system's cache after the
first round. Results are medians with the extremes, ratios are those of processor time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from others import (
    DIFFERENCES,
    lightly_train_views,
    lightly_views,
    stable_pretraining_views,
    torchvision_views,
)
from page import table, write_part
from PIL import Image
from report import NOT_INSTALLED, RESULTS, circumstances, is_installed, measure, publish, ratios
from views import MEAN, STD, our_views

from sslcli.data.cache.dataset import CachedDataset, open_cached
from sslcli.data.crops import Cropper, Crops, Slice, split_views, wanted_side
from sslcli.data.files import FileDataset
from sslcli.data.workers import SLICE
from sslcli.datasets.images import Images, ImagesOptions
from sslcli.views.pipeline import ViewMaker

#: Photographs per round for what processes tens per second.
SLOW = 48
OTHERS = ("lightly", "lightly_train", "stable_pretraining", "torchvision")
#: The table's rows. Of the share of a worker the others have no counterpart: their workers do all of it.
ROWS = {
    "ours_whole": "the whole recipe, ours: decode, crops and color",
    "ours_cached_whole": "ours, cached: crops and color",
    **{name: f"{name.replace('_', '-')}: decode, crops and color" for name in OTHERS},
    "ours": "a worker's share of ours, beside a GPU: decode and crops",
    "ours_cached": "a worker's share of ours, cached: crops",
    "torchvision_crop": "torchvision, decode and crops only",
    "color": "the rest of ours, color, if a core does it",
}


def other_items(data: FileDataset, size: int, view: dict[str, Any]) -> dict[str, Callable[[int], Any]]:
    """Returns for each installed package a function that gets a photograph with both views, as its dataset does."""
    items: dict[str, Callable[[int], Any]] = {}

    def opened(index: int) -> Image.Image:
        with Image.open(data.folder / data.files[index]) as file:
            return file.convert("RGB")

    if is_installed("lightly"):
        items["lightly"] = lightly_items(data, size, view)
    if is_installed("lightly-train"):
        make = lightly_train_views(size, view, MEAN, STD)  # turns its events off, so before it is imported
        from lightly_train._data.file_helpers import ImageMode, open_image_numpy

        items["lightly_train"] = lambda index: make(open_image_numpy(data.folder / data.files[index], ImageMode.RGB))
    if is_installed("stable-pretraining"):
        transform = stable_pretraining_views(size, view, MEAN, STD)
        items["stable_pretraining"] = lambda index: transform({"image": opened(index)})
    whole, crop = (torchvision_views(size, view, MEAN, STD, crop_only=only) for only in (False, True))

    def torchvision(transform: Callable[[Any], torch.Tensor], index: int) -> Any:
        image = opened(index)
        return transform(image), transform(image)

    return {**items, "torchvision": partial(torchvision, whole), "torchvision_crop": partial(torchvision, crop)}


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


def tables(report: dict[str, Any]) -> str:
    """The table of a report: what is the same work in all rows, then a worker's share of it."""
    speeds = report["images_per_core_second"]
    theirs = [name for name in OTHERS[:2] if isinstance(speeds.get(name), dict)]
    rows = [
        [ROWS[name], f"{speeds[name]['median']:,.0f}", *(_ratio(speeds, name, other) for other in theirs)]
        for name in ROWS
        if isinstance(speeds.get(name), dict)
    ]
    return "\n".join([
        f"Photographs per second on one core, {report['megapixels']} megapixels, two views of {report['size']} px:\n",
        table(["", "per second", *(f"relative to {name.replace('_', '-')}" for name in theirs)], rows),
        f"Made by `{' '.join(report['command'])}`, {report['time']}, {report['processor']}, load average "
        f"{report['load_average']}, torch {report['torch']}, pillow {report['pillow']}, by processor time.\n",
    ])  # fmt: skip


def _ratio(speeds: dict[str, Any], name: str, other: str) -> str:
    return f"{speeds[name]['median'] / speeds[other]['median']:.2f} ×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a tree of photographs")
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    parser.add_argument("--count", type=int, default=200, help="photographs a round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    parser.add_argument("--write-docs", action="store_true", help="put the table of that file into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.write_docs:
        write_part("photographs", tables(json.loads((RESULTS / "photographs-cpu.json").read_text(encoding="utf-8"))))
        return
    if arguments.folder is None:
        parser.error("FOLDER: name a tree of photographs")
    torch.set_num_threads(1)
    options = ImagesOptions(root=arguments.folder, limit=arguments.count)
    data = Images(options)
    count, slow = len(data), min(len(data), SLOW)
    views, recipe = our_views(arguments.size)
    cropper = Cropper(data, views, 0)
    kept: list[Crops] = []

    def share(cropper: Cropper, epoch: int) -> None:
        kept[:] = crop_all(cropper, epoch, count)

    def color(epoch: int) -> None:
        for crops in kept:
            images = split_views(crops.buffer, len(crops.index), cropper.shapes(crops.slice.step))
            views.apply(images, views.draw(epoch, torch.tensor(crops.slice.index), None), cropped=True)

    def whole(cropper: Cropper, epoch: int) -> None:
        share(cropper, epoch)
        color(epoch)

    ways: dict[str, Callable[[int], Any]] = {"ours": partial(share, cropper), "color": color}
    ways["ours_whole"] = partial(whole, cropper)
    images = dict.fromkeys([*ways, "ours_cached", "ours_cached_whole"], count)
    for name, item in other_items(data, arguments.size, recipe).items():
        ways[name], images[name] = partial(lambda item, epoch: [item(index) for index in range(slow)], item), slow
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cached = Cropper(cached_photographs(options, views, Path(folder)), views, 0)
        written = {
            "shorter_side": options.cache_size,
            "seconds": round(time.perf_counter() - began, 2),
            "bytes": sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()),
        }
        ways |= {"ours_cached": partial(share, cached), "ours_cached_whole": partial(whole, cached)}
        speeds = measure(ways, images, arguments.repeats)
        spent = {"ours": parts(cropper, count), "ours_cached": parts(cached, count)}
    absent = dict.fromkeys((name for name in DIFFERENCES if name not in ways), NOT_INSTALLED)
    report = {
        "what": "photographs per second that become SimCLR's two views: ours decodes and crops, ours_cached crops, "
        "torchvision_crop decodes and crops; color is the rest of the recipe on this core; all others do all of it",
        **{kind: values | absent for kind, values in speeds.items()},
        "ratios": ratios(
            speeds["images_per_core_second"],
            [name for name in ways if name.startswith("ours")],
            [*OTHERS, "torchvision_crop"],
        ),
        "differences": {name: text for name, text in DIFFERENCES.items() if name in ways},
        "milliseconds_per_photograph": spent,
        "cache": written,
        "size": arguments.size,
        "photographs": count,
        "megapixels": round(
            sum(image.shape[1] * image.shape[2] for image in map(data.image, range(slow))) / slow / 1e6, 3
        ),
        "repeats": arguments.repeats,
        **circumstances("lightly", "lightly-train", "stable-pretraining"),
    }
    publish(report, arguments.output)
    print(tables(report))


if __name__ == "__main__":
    main()
