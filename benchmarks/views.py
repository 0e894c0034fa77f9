"""Images per second that become SimCLR's two views: ours, eager and compiled, and those of other packages per sample.

    python benchmarks/views.py [--size 32] [--source 32] [--batch 256] [--threads 1] [--output NAME]

The others are torchvision and, if they are installed (`pip install 'sslcli[benchmark]'`), lightly and lightly-train,
all with the same recipe, on the kind of image that their datasets return. All alternate in one process, on images in
memory, so that neither decoding nor other load on the machine favors one of them. `images_per_second` is by wall time
with all threads; `images_per_core_second` by processor time, which other load affects less. Both are medians with the
extremes; ratios are those of the second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from others import DIFFERENCES, lightly_train_views, lightly_views, torchvision_views
from PIL import Image
from report import NOT_INSTALLED, circumstances, is_installed, measure, publish, ratios
from torch import Tensor

from sslcli.augmentations import bands
from sslcli.augmentations.simclr import SimCLRPreset
from sslcli.contracts.views import ViewSpec
from sslcli.views.pipeline import ViewMaker

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
OURS, OTHERS = ("eager", "whole_matrices", "compiled"), ("torchvision", "lightly", "lightly_train")
#: Images per round for packages that process one sample at a time; enough for a tenth of a second or more.
SLOW, FAST = 64, 256


def our_views(size: int) -> tuple[ViewMaker, dict[str, Any]]:
    """Returns the preset's views and the preset's description of them."""
    (view,) = SimCLRPreset.views(SimCLRPreset.Options(), size)
    crop = {"scale": view["crop_scale"], "interpolation": view["interpolation"]}
    operations: list[dict[str, Any]] = [
        {"name": "crop", "options": crop},
        {"name": "flip", "options": {"p": view["flip"]}},
        {"name": "jitter", "options": view["jitter"]},
        {"name": "grayscale", "options": {"p": view["grayscale"]}},
    ]
    if view["blur"]:
        operations.append({"name": "blur", "options": view["blur"]})
    spec = ViewSpec.parse({"count": view["count"], "size": size, "operations": operations})
    return ViewMaker([spec], 3, MEAN, STD, seed=0), view


def with_whole_matrices(way: Callable[[int], Any], epoch: int) -> Any:
    """Eager views with the products that other devices and compiled code make (`sslcli/augmentations/bands.py`)."""
    worth, bands.WORTH = bands.WORTH, 1 << 30
    try:
        return way(epoch)
    finally:
        bands.WORTH = worth


def per_sample(make: Callable[[Any], list[Tensor]], samples: Sequence[Any]) -> Callable[[int], list[Tensor]]:
    """Returns what a data loader does: the two views of each sample, then a batch of each view."""
    return lambda epoch: [torch.stack(views) for views in zip(*map(make, samples), strict=True)]


def other_ways(size: int, view: dict[str, Any], batch: Tensor, threads: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the views of the installed packages, and the number of images for each."""
    arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in batch[:FAST]]
    one = torchvision_views(size, view, MEAN, STD)
    ways = {"torchvision": per_sample(lambda image: [one(image), one(image)], list(batch[:SLOW]))}
    if is_installed("lightly"):
        pictures = [Image.fromarray(array) for array in arrays[:SLOW]]
        ways["lightly"] = per_sample(lightly_views(size, view, MEAN, STD), pictures)
    if is_installed("lightly-train"):
        ways["lightly_train"] = per_sample(lightly_train_views(size, view, MEAN, STD, threads), arrays)
    return ways, {name: min(FAST if name == "lightly_train" else SLOW, len(batch)) for name in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="side of the views in pixels")
    parser.add_argument("--source", type=int, help="side of the source images (default: 32 for 32, else 256/224 of it)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="without the compiled views (half a minute)")
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = arguments.source or (32 if arguments.size == 32 else arguments.size * 256 // 224)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (arguments.batch, 3, source, source), dtype=torch.uint8, generator=generator)
    sizes, positions = torch.tensor([[source, source]]).repeat(len(batch), 1), torch.arange(len(batch))
    eager, view = our_views(arguments.size)
    ways: dict[str, Callable[[int], Any]] = {
        "eager": lambda epoch: eager.apply([batch], eager.draw(epoch, positions, sizes))
    }
    ways["whole_matrices"] = lambda epoch: with_whole_matrices(ways["eager"], epoch)
    images = {"eager": len(batch), "whole_matrices": len(batch)}
    compile_seconds = None
    if not arguments.no_compile:
        compiled, _ = our_views(arguments.size)
        compiled.compile()
        ways["compiled"], images["compiled"] = (
            lambda epoch: compiled.apply([batch], compiled.draw(epoch, positions, sizes)),
            len(batch),
        )
        start = time.perf_counter()
        ways["compiled"](0)
        compile_seconds = round(time.perf_counter() - start, 1)
    others, counts = other_ways(arguments.size, view, batch, arguments.threads)
    speeds = measure(ways | others, images | counts, arguments.repeats)
    absent = dict.fromkeys((name for name in OTHERS if name not in others), NOT_INSTALLED)
    report = {
        "what": "source images per second that become SimCLR's two views, drawing included, decoding not",
        **{kind: values | absent for kind, values in speeds.items()},
        "ratios": ratios(speeds["images_per_core_second"], OURS, OTHERS),
        "differences": {name: text for name, text in DIFFERENCES.items() if name in others},
        "compile_seconds": compile_seconds,
        "size": arguments.size,
        "source": source,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        **circumstances("lightly", "lightly-train", "albumentations"),
    }
    publish(report, arguments.output)


if __name__ == "__main__":
    main()
