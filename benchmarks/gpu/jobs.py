"""What the stages run in processes of their own, with the package: `python -m gpu.jobs NAME … -- OVERRIDES`.

Results are lines (`lines.note`); so is whatever a job notes before it fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.plugins import load
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.directory import RunDirectory
from sslcli.runs.metrics import read_metrics
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build
from sslcli.training.speed import measure, report
from sslcli.training.train import train

from .lines import note

ARGUMENTS: argparse.Namespace


def on_cuda() -> bool:
    return bool(ARGUMENTS.device.startswith("cuda"))


def synchronize() -> None:
    if on_cuda():
        torch.cuda.synchronize()


def config(method: str, *more: str) -> RunConfig:
    """Returns two epochs of a method on a ResNet-18 at 32 px, eager unless told otherwise."""
    batch = 16 if ARGUMENTS.tiny else 256
    plain: dict[str, Any] = {
        "method": {"name": method},
        "backbone": {"name": "resnet18", "stem": "small", **({"width": 4} if ARGUMENTS.tiny else {})},
        "data": {"name": "cifar10"},
        "training": {"epochs": 2, "batch_size": batch, "compile": "none", "log_every": 5},
        "schedule": {"name": "cosine", "warmup_epochs": 0},
    }
    if "ViT" in load("methods", method).needs:
        plain["backbone"] = {"name": "vit_tiny", **({"depth": 1} if ARGUMENTS.tiny else {})}
    if method == "dino":  # the paper's 65,536 prototypes are for ImageNet
        plain["method"]["head"] = {"prototypes": 4096}
    document = Document(plain, {(): "gpu"})
    tiny = ["training.precision=fp32"] * ARGUMENTS.tiny
    apply_overrides(document, [*ARGUMENTS.overrides, *tiny, *more])
    return resolve(document)


def short() -> list[str]:
    """Ten steps an epoch."""
    drawn = any("name: shapes" in each for each in ARGUMENTS.overrides)
    return [] if ARGUMENTS.tiny else [f"data.{'count' if drawn else 'limit'}=2560"]


def loop_of(chosen: RunConfig) -> Loop:
    session = build(chosen)
    session.source.prepare()
    return Loop(session, Context(session, RunDirectory(Path())), 0)


def about() -> None:
    """Where and when a call ran."""
    note(
        "about",
        device=torch.cuda.get_device_name() if on_cuda() else platform.machine(),
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        commit=os.environ.get("SSLCLI_GPU_COMMIT") or None,
        versions={
            "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        },
    )  # fmt: skip


def machine() -> None:
    """What the device can do: products, copies, transfers, launches."""
    values: dict[str, Any] = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    side, device = (256 if ARGUMENTS.tiny else 8192), torch.device(ARGUMENTS.device)

    def seconds(work: Callable[[], Any], repeats: int = 10) -> float:
        for _ in range(2):
            work()
        synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize()
        return (time.perf_counter() - began) / repeats

    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    values["bf16_tflops"] = 2 * side**3 / seconds(lambda: a @ a) / 1e12
    x = torch.empty(1 << (20 if ARGUMENTS.tiny else 30), dtype=torch.uint8, device=device)
    y, host = torch.empty_like(x), torch.empty(len(x) // 4, dtype=torch.uint8, pin_memory=on_cuda())
    values["copy_tb_s"] = 2 * x.numel() / seconds(lambda: y.copy_(x)) / 1e12
    values["h2d_gb_s"] = host.numel() / seconds(lambda: x[: len(host)].copy_(host, non_blocking=True)) / 1e9
    z, launches = torch.zeros(16, device=device), 100 if ARGUMENTS.tiny else 20_000
    synchronize()
    began = time.perf_counter()
    for _ in range(launches):
        z.add_(1)
    values["host_us_per_launch"] = (time.perf_counter() - began) / launches * 1e6
    synchronize()
    values["us_per_small_kernel"] = (time.perf_counter() - began) / launches * 1e6
    if on_cuda():
        values["capability"] = torch.cuda.get_device_capability()
    note("machine", **values)


def method(name: str) -> None:
    """Two epochs with every monitor, a save and a resumption in between; then what one step waits for."""
    output = Path(ARGUMENTS.work) / f"method-{name}"
    shutil.rmtree(output, ignore_errors=True)
    more = [
        "callbacks.knn.every_epochs=1", "callbacks.online_probe.every_epochs=1", "callbacks.knn.limit_train=2000",
        "callbacks.knn.limit_eval=1000", "checkpoints.every_epochs=1", *short(),
    ]  # fmt: skip
    said: list[str] = []
    train(config(name, *more, f"training.max_steps={2 if ARGUMENTS.tiny else 15}"), output, tell=said.append)
    train(config(name, *more), output, resume=True, tell=said.append)
    found = read_metrics(output / "metrics.jsonl")
    values = {
        key: [line[key] for line in found if key in line][-8:] for key in ("loss", "knn_top1", "images_per_second")
    }
    note(name, **values, said=said[-6:])
    if not on_cuda():
        return
    loop = loop_of(config(name, *short()))
    for _ in range(3):
        loop.step()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.step()
    torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    note(f"{name} waits", waits=waits)


def exact(name: str) -> None:
    """Deterministic training: the same run twice, and in two pieces."""
    steps = 4 if ARGUMENTS.tiny else 12

    def tensors(part: str, until: int, *, resume: bool = False) -> dict[str, torch.Tensor]:
        output = Path(ARGUMENTS.work) / f"exact-{name}-{part}"
        if not resume:
            shutil.rmtree(output, ignore_errors=True)
        more = ["training.deterministic=true", "callbacks.knn=null", *short(), f"training.max_steps={until}"]
        train(config(name, *more), output, resume=resume)
        return read_checkpoint(list_checkpoints(output / "checkpoints")[0]).tensors

    whole, again = tensors("whole", steps), tensors("again", steps)
    tensors("parts", steps // 2 - 1)
    parts = tensors("parts", steps, resume=True)
    differ = {
        kind: [key for key in whole if not torch.equal(whole[key], other[key])][:5]
        for kind, other in (("repeated", again), ("resumed", parts))
    }
    note(name, tensors=len(whole), differ=differ)


def profile(compiled: str) -> None:
    """Launches, host time and kernels of SimCLR's step at batch 512."""
    size = [] if ARGUMENTS.tiny else ["training.batch_size=512", "training.precision=bf16"]
    loop, steps = loop_of(config("simclr", f"training.compile={compiled}", "training.epochs=20", *size)), 10
    for _ in range(3 if ARGUMENTS.tiny else 8):
        loop.step()
    synchronize()
    began, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
        loop.step()
    host = time.perf_counter() - began  # the device may still be at work
    synchronize()
    whole, used = time.perf_counter() - began, time.process_time() - used
    times = {"ms": 1e3 * whole / steps, "host_ms": 1e3 * host / steps, "processor_ms": 1e3 * used / steps}
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_cuda()]
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(3):
            loop.step()
        synchronize()
    events, kernels = seen.events() or [], dict[str, list[float]]()
    for event in events:
        if event.device_type.name == "CUDA":
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us())
    ordered = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:30]
    note(
        compiled, **{key: round(value, 3) for key, value in times.items()},
        launches=round(sum("LaunchKernel" in e.name or "GraphLaunch" in e.name for e in events) / 3, 1),
        kernels=round(sum(map(len, kernels.values())) / 3, 1),
        busy_ms=round(sum(map(sum, kernels.values())) / 3e3, 3),
        longest=[[key[:90], round(sum(spent) / 3e3, 4), round(len(spent) / 3, 1)] for key, spent in ordered],
    )  # fmt: skip
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60))


def costs(*names: str) -> None:
    """`ssl bench` of every method in one process, batch 256."""
    for name in names:
        try:
            chosen = config(name, *([] if ARGUMENTS.tiny else ["training.precision=bf16"]), "training.epochs=20")
            session, measured = measure(chosen, steps=2 if ARGUMENTS.tiny else 10, rounds=1 if ARGUMENTS.tiny else 2)
            found = report(session, measured, 10, [])
            note(name, **{key: found[key] for key in ("images_per_second", "ratio", "phases", "memory")})
            del session, measured
        except Exception as error:  # the next method is worth more
            note(name, error=f"{type(error).__name__}: {error}"[:500])
        if on_cuda():
            torch.cuda.empty_cache()


def photographs(folder: str) -> None:
    """Drawn pictures of 500×375 pixels as JPEG files."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from PIL import Image

    Path(folder).mkdir(parents=True, exist_ok=True)

    def draw(number: int) -> None:
        noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
        picture.save(f"{folder}/{number:05}.jpg", quality=90)

    with ThreadPoolExecutor(8) as pool:  # Pillow works outside Python's lock
        list(pool.map(draw, range(16 if ARGUMENTS.tiny else 3000)))


JOBS: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (about, machine, method, exact, profile, costs, photographs)
}


def main() -> None:
    global ARGUMENTS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    end = sys.argv.index("--")
    ARGUMENTS = parser.parse_args(sys.argv[1:end])
    ARGUMENTS.overrides = sys.argv[end + 1 :]
    JOBS[ARGUMENTS.job](*ARGUMENTS.names)


if __name__ == "__main__":
    main()
