"""Measures how many images a second become SimCLR's two views: ours, eager and compiled, beside torchvision per sample.

    python benchmarks/views.py [--size 32] [--source 32] [--batch 256] [--threads 1] [--output NAME]

All ways run in turn in one process, on images that are in memory already, so that neither decoding nor a neighbour's
load favours one of them. `images_per_second` goes by the clock, over all threads; `images_per_core_second` goes by the
processor time that was used, which neighbours on a busy machine disturb less. Both are medians with the extremes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from sslcli.contracts.views import ViewSpec
from sslcli.views.pipeline import ViewMaker
from sslcli.views.presets import SimCLRPreset

RESULTS = Path(__file__).parent / "results"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


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


def torchvision_views(size: int, view: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Returns the same recipe as a torchvision transform of one uint8 image."""
    jitter = {name: view["jitter"][name] for name in ("brightness", "contrast", "saturation", "hue")}
    steps: list[Any] = [
        v2.RandomResizedCrop(size, tuple(view["crop_scale"]), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(view["flip"]),
        v2.RandomApply([v2.ColorJitter(**jitter)], view["jitter"]["p"]),
        v2.RandomGrayscale(view["grayscale"]),
    ]
    if view["blur"]:
        kernel = 2 * (int(size * view["blur"]["kernel"]) // 2) + 1
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], view["blur"]["p"]))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(ways: dict[str, Callable[[int], Any]], images: dict[str, int], repeats: int) -> dict[str, Any]:
    """Runs the ways in turn; returns images per second, by the clock and by the processor time used."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    core: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(repeats + 1):
        for name, way in ways.items():
            start, start_core = time.perf_counter(), time.process_time()
            way(epoch)
            if epoch:  # the first round warms up
                clock[name].append(images[name] / (time.perf_counter() - start))
                core[name].append(images[name] / (time.process_time() - start_core))
    return {"images_per_second": _summary(clock), "images_per_core_second": _summary(core)}


def _summary(speeds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": round(statistics.median(values), 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
        for name, values in speeds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="side of the views in pixels")
    parser.add_argument("--source", type=int, help="side of the source images (default: 32 for 32, else 256/224 of it)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled way out (half a minute)")
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = arguments.source or (32 if arguments.size == 32 else arguments.size * 256 // 224)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (arguments.batch, 3, source, source), dtype=torch.uint8, generator=generator)
    sizes, positions = torch.tensor([[source, source]]).repeat(len(batch), 1), torch.arange(len(batch))
    eager, view = our_views(arguments.size)
    transform = torchvision_views(arguments.size, view)
    some = batch[:64]  # one sample after the other costs the same whatever the batch

    def per_sample(epoch: int) -> list[Tensor]:
        return [torch.stack([transform(image) for image in some]) for _ in range(2)]

    ways: dict[str, Callable[[int], Any]] = {
        "eager": lambda epoch: eager.apply([batch], eager.draw(epoch, positions, sizes)),
        "torchvision": per_sample,
    }
    images = {"eager": len(batch), "torchvision": len(some)}
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
        compile_seconds = time.perf_counter() - start
    report = {
        "what": "source images per second that become SimCLR's two views, drawing included, decoding not",
        **measure(ways, images, arguments.repeats),
        "compile_seconds": compile_seconds,
        "size": arguments.size,
        "source": source,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "load_average": round(os.getloadavg()[0], 1),
        "processor": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    print(json.dumps(report, indent=2))
    if arguments.output:
        RESULTS.mkdir(exist_ok=True)
        path = (RESULTS / arguments.output).with_suffix(".json")
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
