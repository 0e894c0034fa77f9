"""The stages of a day on a lent GPU, in order of worth; each is a function of the runner, with limits of its own."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from types import MappingProxyType

from . import packing
from .rungs import ROOT, RUNGS, climb, rungs_of
from .runner import Command, Runner

CONFIG = ROOT / "examples/configs/cifar10/simclr.yaml"
FILES = 6  # of CIFAR-10, besides its names of classes

METHODS = (
    "simclr", "byol", "moco_v2", "swav", "dino", "barlow_twins", "vicreg", "simsiam", "moco_v3", "simclr_v2", "supcon",
    "moco_v1", "eqco", "moco", "nnclr", "lejepa", "densecl", "mae", "ijepa",
)  # fmt: skip

_BF16, _SMALL, _LARGE = "training.precision=bf16", "training.batch_size=512", "training.batch_size=1024"
_GRAPHS = "training.cuda_graphs=true"
_AT_224 = (
    "data={name: shapes, count: 1024, size: 224}", "backbone={name: resnet50}", "views.size=224", _BF16,
    "training.batch_size=256",
)  # fmt: skip


def _compiled(what: str, *more: str) -> tuple[str, ...]:
    return (f"training.compile={what}", *more)


#: The variants that `ssl bench` measures, the most telling first.
VARIANTS = MappingProxyType(
    {
        "eager 512": _compiled("none", _SMALL, _BF16),
        "all 1024": _compiled("all", _LARGE, _BF16),
        "views 512": _compiled("views", _SMALL, _BF16),
        "all 512": _compiled("all", _SMALL, _BF16),
        "all graphs 1024": _compiled("all", _LARGE, _BF16, _GRAPHS),
        "all graphs 512": _compiled("all", _SMALL, _BF16, _GRAPHS),
        "views 1024": _compiled("views", _LARGE, _BF16),
        "eager 1024": _compiled("none", _LARGE, _BF16),
        "224 px, views": _compiled("views", *_AT_224),
        "224 px, eager": _compiled("none", *_AT_224),
        "eager 512 contiguous": _compiled("none", _SMALL, _BF16, "training.channels_last=false"),
        "eager 512 fp16": _compiled("none", _SMALL, "training.precision=fp16"),
        "eager 512 fp32": _compiled("none", _SMALL, "training.precision=fp32"),
        "eager 512 tf32": _compiled("none", _SMALL, "training.precision=tf32"),
    }
)
AGAIN = "eager 512 again"
_TINY_BENCH = ("training.batch_size=16", "training.precision=fp32", "training.compile=none", "views.size=32")


def unpack(runner: Runner) -> None:
    """Installs the wheels and writes the images of every part that was brought; again in a later call for its part."""
    wheels = {path.name: str(path) for part in runner.packed for path in part.glob("wheels/*.whl")}
    site = runner.work / "site"
    if wheels and not _is_installed("sslcli") and not site.exists():
        words = ["install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        runner.one("install", runner.python("pip", *words, "--target", str(site), *wheels.values()), 90)
    folder = runner.work / "cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    for part in runner.packed:
        for path in sorted(part.glob("cifar10/*")):
            target = folder / path.name.removesuffix(".pack")
            if not target.exists():
                raw = path.read_bytes()
                target.write_bytes(packing.unpack_images(raw) if path.suffix == ".pack" else raw)
    for name in RUNGS:
        pieces = sorted(path for part in runner.packed for path in part.glob(f"state/{name}.[0-9][0-9][0-9]"))
        run = runner.work / "rungs" / name
        if pieces and not run.exists():
            try:
                packing.unpack_run((path.read_bytes() for path in pieces), run)
            except packing.Damaged:  # not all of them have come yet, or not from one packing
                runner.note("unpacked", rung=name, pieces=len(pieces), status="not whole")
            else:
                runner.note("unpacked", rung=name, step=(packing.newest_checkpoint(run) or (None, 0))[1])


def _is_installed(package: str) -> bool:
    with suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(package))
    return False


def has_cifar(runner: Runner) -> bool:
    """Returns whether all of CIFAR-10 has come."""
    return len(list((runner.work / "cifar10/cifar-10-batches-py").glob("*_batch*"))) == FILES


def data(runner: Runner) -> list[str]:
    """Returns overrides: CIFAR-10, or drawn images, as fast, while half of it is missing, and in a dry run."""
    if not runner.tiny and has_cifar(runner):
        return [f"data.root={runner.work / 'cifar10'}", f"training.device={runner.device}"]
    count = 128 if runner.tiny else 8192
    return [f"data={{name: shapes, count: {count}, size: 32}}", f"training.device={runner.device}"]


def tiny(runner: Runner) -> list[str]:
    """Returns overrides that make a config of the ladder a matter of seconds on a CPU, and nothing in earnest."""
    if not runner.tiny:
        return []
    return [
        "backbone.width=4", "method.projector.hidden_dim=16", "training.batch_size=32", "training.epochs=2",
        "training.max_steps=null", "training.compile=none", "training.precision=fp32", "schedule.warmup_epochs=0",
        "training.log_every=1", "callbacks={online_probe: {}, knn: null, tensorboard: null, progress: null}",
    ]  # fmt: skip


def env(runner: Runner) -> None:
    """The machine itself, and whether every plugin can be loaded there."""
    runner.one("machine", runner.job("machine"), 60)
    runner.one("list --check", runner.ssl("list", "--check"), 60)


def tests(runner: Runner) -> None:
    """Every gpu-marked test; beside them compilers fill their cache for the variants that are timed later."""
    warming = []
    for name, overrides in VARIANTS.items():
        if "training.compile=none" not in overrides and not runner.tiny:
            command = runner.ssl("bench", str(CONFIG), *data(runner), *overrides, "--steps", "1", "--rounds", "1")
            warming.append(runner.start(f"warm {name}", command))
    words = ["-q", "-m", "gpu", "-p", "gpu.each_test", "--timeout=100", "--continue-on-collection-errors"]
    words += ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    # In a dry run they are all skipped: the files of one folder are enough to see that they are found.
    words += [str(ROOT / "tests/optimizers")] if runner.tiny else ["-n", "6", "--dist", "loadfile", str(ROOT / "tests")]
    runner.one("pytest", runner.python("pytest", *words), 150)
    began = time.monotonic()
    for job in warming:
        runner.finish(job, job.seconds() + max(2.0, min(60.0, runner.left() - 60) - (time.monotonic() - began)))


def bench(runner: Runner) -> None:
    """Alone on the device. The first variant once more in between: what changed meanwhile is noise."""
    first, *others = VARIANTS
    labels = [first, AGAIN] if runner.tiny else [first, *others[:5], AGAIN, *others[5:]]
    for label in labels:
        target = runner.work / f"bench-{label}.json"
        target.unlink(missing_ok=True)
        overrides = [*data(runner), *VARIANTS[first if label == AGAIN else label]]
        if runner.tiny:
            overrides = [*data(runner), "backbone={name: resnet18, width: 4}", *_TINY_BENCH]
        words = ["--steps", "1" if runner.tiny else "10", "--rounds", "1" if runner.tiny else "3"]
        if runner.one(
            f"bench {label}", runner.ssl("bench", str(CONFIG), *overrides, *words, "--output", str(target)), 75
        ):
            runner.note(label, bench=json.loads(target.read_text()))


def learn(runner: Runner) -> None:
    """Ten epochs of SimCLR with kNN after each, then both evaluations: does it learn, and at the speed of the bench?"""
    run = runner.work / "learn"
    more = ["training.epochs=10", "schedule.warmup_epochs=1", "callbacks.knn.every_epochs=1", *tiny(runner)]
    if runner.one(
        "train", runner.ssl("train", str(CONFIG), *data(runner), *more, "--output", str(run), "--resume"), 120
    ):
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        names = ("loss", "knn_top1", "images_per_second")
        runner.note(
            "curve",
            drawn=not has_cifar(runner),
            **{name: [each[name] for each in records if name in each][-60:] for name in names},
        )
        for method, options in (("knn", []), ("linear", ["epochs=2"] if runner.tiny else [])):
            target = runner.work / f"learn-{method}.json"
            words = [str(run), "--method", method, *options, "--device", runner.device, "--output", str(target)]
            if runner.one(f"eval {method}", runner.ssl("eval", *words), 60):
                runner.note(method, metrics=json.loads(target.read_text())["metrics"])


def _each(runner: Runner, job: str, names: tuple[str, ...], at_once: int, limit: float) -> None:
    commands: list[tuple[str, Command]] = [
        (f"{job} {name}", runner.job(job, name, overrides=data(runner))) for name in names
    ]
    runner.many(commands[:1] if runner.tiny else commands, at_once, limit)


def methods(runner: Runner) -> None:
    """Every method as it is used: two short epochs with monitors, a save, a resumption; then a step's waits."""
    _each(runner, "method", METHODS, 4, 75)


def exact(runner: Runner) -> None:
    """Deterministic runs: one repeats itself bitwise, and one in two pieces is the run in one."""
    _each(runner, "exact", ("simclr", "moco_v2", "swav", "dino", "byol"), 5, 90)


def profile(runner: Runner) -> None:
    """Where the time of a step goes: launches, kernels, host."""
    for compiled in ("none", "views", "all")[: 1 if runner.tiny else 3]:
        runner.one(f"profile {compiled}", runner.job("profile", compiled, overrides=data(runner)), 60)


def costs(runner: Runner) -> None:
    """Every method's step, alone on the device: images per second, phases, peak memory."""
    names = METHODS[:1] if runner.tiny else METHODS
    runner.one("costs", runner.job("costs", *names, overrides=data(runner)), 120)


def photos(runner: Runner) -> None:
    """Photographs through worker processes, ResNet-50 at 224 px: is the loader the limit?"""
    folder, target = runner.work / "photographs", runner.work / "photos.json"
    if not runner.one("photographs", runner.job("photographs", str(folder)), 40):
        return
    overrides = ["training.batch_size=256", _BF16, "training.compile=none"]
    if runner.tiny:
        overrides = [*_TINY_BENCH, "training.batch_size=4", "backbone={name: resnet18, width: 4}", "training.workers=1"]
    words = [f"data.root={folder}", f"training.device={runner.device}", *overrides, "--rounds", "1"]
    words += ["--steps", "1" if runner.tiny else "6", "--output", str(target)]
    if runner.one("bench", runner.ssl("bench", str(ROOT / "examples/configs/images/simclr.yaml"), *words), 90):
        runner.note("photographs", bench=json.loads(target.read_text()))


STAGES: dict[str, Callable[[Runner], None]] = {
    each.__name__: each for each in (env, tests, bench, learn, methods, exact, profile, costs, photos)
}
#: What the two calls of a day do, and the seconds they have: with the start of the machine and two transfers they fit
#: into the 15 minutes of a loan.
PARTS = {"a": (370, ("env", "tests", "bench")), "b": (320, tuple(STAGES)[3:])}


def names(asked: str) -> list[str]:
    """Returns the stages and rungs that names with commas mean (`all`: every stage); ValueError for an unknown one."""
    found: list[str] = []
    for name in asked.split(","):
        means = list(STAGES) if name == "all" else [name] if name in STAGES else rungs_of(name)
        if not means:
            raise ValueError(f"{name!r} is no stage or rung; they are all, {', '.join([*STAGES, *RUNGS])}")
        found += means
    return found


def run(runner: Runner, name: str) -> None:
    """Runs a stage or a rung, whatever happens in it, and notes its time."""
    began, runner.stage = time.monotonic(), name
    values: dict[str, str] = {}
    try:
        if runner.left() < 10:
            values["status"] = "no time left"
        elif name in STAGES:
            STAGES[name](runner)
        elif not (runner.tiny or has_cifar(runner)):
            values["status"] = "CIFAR-10 is incomplete: bring both halves first"
        else:
            climb(runner, name, data(runner), tiny(runner))
    except Exception as error:  # the next stage is worth more than this one's traceback
        values["error"] = f"{type(error).__name__}: {error}"[:500]
    runner.note("end", seconds=round(time.monotonic() - began, 1), left=round(runner.left(), 1), **values)


def commit() -> str:
    """Returns the commit of this checkout, with + if files differ; empty where there is none."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return head + "+" * bool(changed)


def about(runner: Runner) -> None:
    """Notes device, versions, commit and date of this call."""
    runner.stage = "run"
    commits = [path.read_text().strip() for part in runner.packed for path in part.glob("COMMIT")]
    runner.one("about", runner.job("about"), 60, SSLCLI_GPU_COMMIT=commits[0] if commits else commit())
