"""`training.compile`: which parts of a step torch.compile gets, when that pays, and what is done where it fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Literal

import torch

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Source
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Method
from sslcli.data.source import ResidentSource
from sslcli.views.pipeline import ViewMaker

log = logging.getLogger(__name__)

Choice = Literal["none", "views", "all"]

#: Pixels of views for each CPU thread from which compiling pays. Measured with `benchmarks/views.py`: a pixel of
#: SimCLR's views costs .15 µs of a thread eager and .05 compiled, so that half a minute is won back after 3e8; the
#: backbone, which takes longer to compile, gains more. Twice that, to be sure.
_PIXELS_PER_THREAD = 600_000_000
#: On a CPU views of this size and above stay eager: there eager code, which works on the chosen samples alone and in
#: parts that fit the cache, is as fast (`benchmarks/views.py --size`: half as fast at 64 px, equal at 128).
_EAGER_ON_CPU = 128
#: Batches of views on CUDA from which compiling them pays. Not measured: an eager view is some hundred small kernels,
#: whatever its size, which are taken for a millisecond.
_VIEWS_ON_CUDA = 30_000


def missing_compiler(device: torch.device) -> str | None:
    """Returns what this machine lacks to compile for a device, or None."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is missing"
    # Triton compiles its launchers with a C compiler, Inductor its loops for a CPU with one for C++.
    wanted, default = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else ("CXX", ("g++", "clang++", "c++"))
    candidates = [os.environ[wanted]] if os.environ.get(wanted) else default
    if not any(shutil.which(each) for each in candidates):
        return f"there is no C{'' if device.type == 'cuda' else '++'} compiler ({' or '.join(candidates)})"
    return None


def resolve_compile(
    name: Literal["auto", "none", "views", "all"],
    device: torch.device,
    sizes: Sequence[int],
    batch_size: int,
    batches: int,
) -> Choice:
    """Returns what `training.compile` means here: `auto` compiles where a compiler is and the run is long enough.

    On CUDA it leaves the backbone alone, since what that gains has not been measured.

    Args:
        name: the option's value.
        device: of the run.
        sizes: the side of every view.
        batch_size: images at once on this process.
        batches: how many of them it will make views of.

    Raises:
        UserError: if compiling was asked for and this machine cannot.
    """
    if name == "none":
        return name
    lack = missing_compiler(device)
    if name == "auto":
        if lack is not None or device.type not in ("cpu", "cuda"):
            return "none"
        if device.type == "cuda":
            return "views" if batches * len(sizes) >= _VIEWS_ON_CUDA else "none"
        pixels = batches * batch_size * sum(size**2 for size in sizes)
        return "all" if pixels >= _PIXELS_PER_THREAD * torch.get_num_threads() else "none"
    if lack is not None:
        raise UserError(f"training.compile: {name}: {lack}; install it, or set training.compile=none")
    return name


def compile_parts(
    config: RunConfig,
    source: Source,
    views: ViewMaker,
    method: Method,
    *,
    compiled: bool = True,
    fresh: bool = True,
) -> RunConfig:
    """Compiles the views, and with `all` every backbone of a method (the momentum encoder's too).

    Parameters keep their names, and an exported or copied backbone is eager. Views are compiled here and now; a
    backbone at its first step, since its code depends on what is trained.

    Args:
        config: of the run.
        source: of its batches.
        views: compiled in place.
        method: with all its copies of the backbone made, on its device; compiled in place.
        compiled: compile it; else only return what would be compiled.
        fresh: the run starts here. One that goes on may have been `auto`, and eager where the compiler failed.

    Returns:
        the config with `training.compile` resolved.

    Raises:
        UserError: if this machine cannot compile what was asked for, or has no CUDA graphs for it.
    """
    training, device = config.training, next(method.parameters()).device
    share = training.batch_size // (training.accumulate * distributed.world_size())
    # Not by `max_steps`: a run in parts must compute what the run in one piece does.
    batches = training.epochs * source.steps_per_epoch * training.accumulate
    choice = resolve_compile(training.compile, device, views.sizes, share, batches)
    if training.cuda_graphs and (choice == "none" or device.type != "cuda"):
        where = "on CUDA" if device.type != "cuda" else "with training.compile=views or all"
        raise UserError(f"training.cuda_graphs: there are such graphs {where} only; set it to false")
    small = device.type != "cpu" or min(views.sizes) < _EAGER_ON_CPU
    if choice == "views" and not small:
        choice = "none"
    if choice != "none" and compiled:
        parts = " and ".join(["the views"] * small + ["the backbone"] * (choice == "all"))
        log.info(f"compiling {parts}: half a minute or more, the first time (training.compile=none goes without)")
        # It warns of toolkits without a GPU, which is nobody's concern on a CPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        mode = "reduce-overhead" if training.cuda_graphs else None
        try:
            _compile_views(views, mode, source, share, device)
        except Exception as error:  # compilers fail in as many ways as there are machines
            problem = f"the compiler failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            if training.compile != "auto":
                raise UserError(f"training.compile: {choice}: {problem}; set training.compile=none") from error
            log.warning(f"nothing is compiled: {problem}")
            views.go_eager()
            choice = "none"
        if choice == "all":
            # A backbone that was not asked to be compiled must not end the run where the compiler can't do it.
            torch._dynamo.config.suppress_errors |= training.compile == "auto" or not fresh
            for module in method.modules():
                if isinstance(module, Backbone):
                    module.compile(dynamic=False, mode=mode)
    return dataclasses.replace(config, training=training.model_copy(update={"compile": choice}))


def _compile_views(views: ViewMaker, mode: str | None, source: Source, count: int, device: torch.device) -> None:
    """Compiles by making views of a black batch like the run's, twice: CUDA graphs are recorded the second time."""
    views.compile(mode, below=_EAGER_ON_CPU if device.type == "cpu" else None)
    channels = views.kinds[0].channels
    resident = source.images if isinstance(source, ResidentSource) else None
    shapes = [(size, size) for size in views.sizes] if resident is None else [tuple(resident.shape[-2:])]
    images = [torch.zeros((count, channels, *shape), dtype=torch.uint8, device=device) for shape in shapes]
    sizes = None if resident is None else torch.tensor(shapes).expand(count, 2)
    for _ in range(2):
        draws = views.draw(0, torch.arange(count), sizes).to(device)
        views.apply(images, draws, cropped=resident is None)
