"""Every case by name: methods, optimizers, clipping, sources, evaluators, exporters."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from cases import CASES, config, trained
from PIL import Image
from pretended.device import Pretended
from small_options import method_cases
from tiny_data import write_tars

from sslcli.evaluation import evaluate, export
from sslcli.plugins import find, load, register_file
from sslcli.training.speed import measure

WORKERS = ("views={preset: simclr, size: 16}", "callbacks.knn=null", "callbacks.logistic=null", "training.batch_size=8")
CROPS = "views={{preset: {}, size: 16, local_size: 8, local_count: 2}}"


def names(group: str) -> list[str]:
    return [plugin.name for plugin in find(group) if plugin.package == "sslcli"]


def run(name: str, *overrides: str, method: str = "simclr", resumes: bool = False) -> None:
    CASES[name] = lambda folder: trained(folder, *overrides, method=method, resumes=resumes)


for case in method_cases():
    run(f"method {case}", method=case, resumes=True)
for optimizer in names("optimizers"):
    for precision in ("bf16", "fp16"):
        run(f"optimizer {optimizer} {precision}", f"optimizer={{name: {optimizer}, lr: 0.01}}",
            f"training.precision={precision}")  # fmt: skip
for mode in ("global", "per_parameter"):
    for optimizer in ("adamw", "lars"):
        run(
            f"clip {mode} {optimizer}",
            f"training.clip={{norm: 0.1, mode: {mode}}}",
            f"optimizer={{name: {optimizer}, lr: 0.01}}",
        )
run("accumulate", "training.accumulate=2", "optimizer={name: lars, lr: 0.01}")
run("fp16 accumulate clip", "training.accumulate=2", "training.precision=fp16", "training.clip={norm: 0.1}")
for precision in ("fp32", "tf32"):
    run(precision, f"training.precision={precision}")
for method in ("simclr", "dino"):
    run(f"vit {method}", "backbone={name: vit_tiny, patch_size: 4, depth: 2}", method=method)
run("vit gradient_checkpointing", "backbone={name: vit_tiny, patch_size: 4, depth: 2, gradient_checkpointing: true}")
for method in ("swav", "dino"):
    run(f"multi-crop {method}", CROPS.format(method), method=method)
run("method simclr on the second device", "training.device=cuda:1", "training.precision=fp16",
    "optimizer={name: lars, lr: 0.01}")  # fmt: skip
run("deterministic", "training.deterministic=true")


def photographs(folder: Path) -> Path:
    """Sixteen images of different sizes in two classes, for training and testing."""
    for part in ("train", "val"):
        for number in range(16):
            path = folder / "photographs" / part / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + number, 24), (16 * number, 100, 200)).save(path)
    return folder / "photographs"


def from_files(folder: Path, workers: int, *more: str) -> None:
    root = photographs(folder)
    trained(folder / "run", f"data={{name: folder, root: {root}}}", f"training.workers={workers}", *WORKERS, *more)


for workers in (0, 2):
    CASES[f"files, {workers} workers"] = functools.partial(from_files, workers=workers)


def from_tars(folder: Path, workers: int) -> None:
    folder.mkdir(exist_ok=True)
    write_tars(folder / "tars", (8, 8))
    register_file(Path(__file__).parents[1] / "contract_plugins" / "tar_shards.py")
    data = f"{{name: tar_shards, root: {folder / 'tars'}, images: 16, classes: [a, b]}}"
    trained(folder / "run", f"data={data}", f"training.workers={workers}", *WORKERS, resumes=True)


for workers in (0, 2):
    CASES[f"stream, {workers} workers"] = functools.partial(from_tars, workers=workers)


@functools.cache
def finished(folder: Path) -> Path:
    """A finished run, which all evaluations and exports of a process share."""
    trained(folder / "finished")
    return folder / "finished"


def evaluated(folder: Path, name: str) -> dict[str, Any]:
    """What an evaluator measures on the device, and on the CPU."""
    found = {}
    options = {"finetune": ["epochs=1", "batch_size=8"], "linear": ["epochs=2"]}.get(name, [])
    for device in ("cuda", "cpu"):
        [row] = evaluate.evaluate_all([finished(folder.parent)], name, options, device=device)
        found[device] = [value for value in row.result.metrics.values() if math.isfinite(value)]
    return {"metrics": found}


for evaluator in names("evaluators"):
    CASES[f"evaluator {evaluator}"] = functools.partial(evaluated, name=evaluator)


def exported(folder: Path, name: str) -> dict[str, Any]:
    """Exports a backbone that is on the device, and tells where it is afterward."""
    finished_run, loader = finished(folder.parent), "load_trained"
    if load("exporters", name).needs_classifier:
        evaluate.evaluate_all([finished_run], "linear", ["epochs=1"], device="cuda")
        loader = "load_classifier"
    plain = getattr(export, loader)

    def on_device(target: Path) -> Any:
        found = plain(target)
        found.backbone.to("cuda")
        kept.append(found.backbone)
        return found

    kept: list[torch.nn.Module] = []
    setattr(export, loader, on_device)
    path = folder.with_suffix(load("exporters", name).suffix)
    try:
        export.export(name, finished_run, path, ["data.limit=8"] if name == "features" else [], device="cuda")
    finally:
        setattr(export, loader, plain)
    tensors = [tensor for module in kept for tensor in module.state_dict().values()]
    return {"written": path.exists(), "stayed": all(isinstance(each, Pretended) for each in tensors) and bool(tensors)}


for exporter in names("exporters"):
    CASES[f"exporter {exporter}"] = functools.partial(exported, name=exporter)


def benchmark(folder: Path) -> dict[str, Any]:
    _, measured = measure(config("simclr", "training.precision=bf16", "training.epochs=20"), steps=2, rounds=1)
    return {"peak": measured.memory["peak_bytes"]}


CASES["bench"] = benchmark
