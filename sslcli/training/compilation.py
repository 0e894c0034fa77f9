"""`training.compile`: the parts of a step to compile, when that pays off, and what happens if the compiler fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Method
from sslcli.contracts.source import Source, SourceBatch
from sslcli.data.source import ResidentSource
from sslcli.memory import is_out_of_memory
from sslcli.modules.transformer import TransformerBlock
from sslcli.runs.device import memory_format
from sslcli.views.pipeline import ViewMaker

from .compiler import compile_module, in_one_line, is_of_files, own_cache, prepare_cache

log = logging.getLogger(__name__)

Compiled = Literal["none", "views", "all"]

#: Pixels of views per CPU thread from which compiling pays off. Measured with `benchmarks/views.py`: a pixel of
#: SimCLR's views costs .15 µs of a thread eager and .05 compiled, so half a minute is recovered after 3e8; the
#: backbone, which takes longer to compile, gains more. This is twice that.
_PIXELS_PER_THREAD = 600_000_000
#: On a CPU views of this size and above stay eager: eager code, which processes only the selected samples, in chunks
#: that fit the cache, is as fast there (`benchmarks/views.py --size`: half as fast at 64 px, equal at 128).
_EAGER_ON_CPU = 128
#: Micro-batches on CUDA from which compiling the views, or the backbone too, pays off: estimates, which wait for a
#: measurement there. Launching a small kernel takes the host 11 µs (`benchmarks/results/gpu-env.json`), and torch's own
#: code as much again: SimCLR's views, 123 kernels, become some thirty, which saves 2 ms of a step, and twenty seconds
#: of compiling after ten thousand. The backbone takes a minute or more and gains about a fifth of a 30 ms step.
_VIEWS_ON_CUDA, _BACKBONE_ON_CUDA = 8_000, 15_000
#: Versions of one function, by shapes of its inputs and by whether they need gradients: torch's own limit.
_CODE_FOR_A_PHASE = 8


def missing_compiler(device: torch.device) -> str | None:
    """Returns what is missing on this machine to compile for a device, or None."""
    # Triton compiles its launchers with a C compiler, Inductor its loops for a CPU with a C++ compiler.
    language, variable, default = "C++", "CXX", ("g++", "clang++", "c++")
    if device.type == "cuda":
        language, variable, default = "C", "CC", ("gcc", "clang", "cc")
        if importlib.util.find_spec("triton") is None:
            return "the package triton is missing"
    candidates = [os.environ[variable]] if os.environ.get(variable) else default
    if not any(shutil.which(each) for each in candidates):
        return f"there is no {language} compiler ({' or '.join(candidates)})"
    return None


def resolve_compile(
    name: Literal["auto", Compiled], device: torch.device, sizes: Sequence[int], batch_size: int, batches: int
) -> Compiled:
    """Returns what to compile: `auto` compiles if there is a compiler and the run is long enough.

    Args:
        name: the option's value.
        device: of the run.
        sizes: the side of every view in pixels.
        batch_size: images per micro-batch on this process.
        batches: such micro-batches in the whole run.

    Raises:
        UserError: compiling was asked for, and this machine cannot compile.
    """
    missing = missing_compiler(device) if name != "none" else None
    if name != "auto":
        if missing is not None:
            raise UserError(f"training.compile: {name}: {missing}; install it, or set training.compile=none")
        return name
    if missing is not None or device.type not in ("cpu", "cuda"):
        return "none"
    if device.type == "cuda":
        return "all" if batches >= _BACKBONE_ON_CUDA else "views" if batches >= _VIEWS_ON_CUDA else "none"
    pixels = batches * batch_size * sum(size**2 for size in sizes)
    return "all" if pixels >= _PIXELS_PER_THREAD * torch.get_num_threads() else "none"


def compile_parts(
    config: RunConfig, source: Source, views: ViewMaker, method: Method, *, compiled: bool, fresh: bool
) -> RunConfig:
    """Compiles the views in place, and with `all` every backbone of a method (the momentum encoder's too) and every
    transformer block.

    A block that a backbone's forward pass calls is part of that one's code; its own is for methods that have blocks of
    their own (a decoder, a predictor), or call a backbone's. Blocks of one shape share their code.

    Parameters keep their names, and an exported or copied network is eager. Views are compiled immediately; the rest at
    its first step, since its code depends on which parameters are trained. Without `compiled` nothing is compiled.

    Returns:
        the config with `training.compile` resolved.

    Raises:
        UserError: this machine cannot compile what was asked for, or has no CUDA graphs for it.
    """
    training, device = config.training, next(method.parameters()).device
    share = training.batch_size // (training.accumulate * distributed.world_size())
    # Not by `max_steps`: a run in several parts must compute the same as the run in one piece.
    batches = training.epochs * source.steps_per_epoch * training.accumulate
    choice = resolve_compile(training.compile, device, views.sizes, share, batches)
    if training.cuda_graphs and (choice == "none" or device.type != "cuda"):
        where = "on CUDA" if device.type != "cuda" else "with training.compile=views or all"
        raise UserError(f"training.cuda_graphs: works only {where}; set it to false")
    small = device.type != "cpu" or min(size for maker in views.phases for size in maker.sizes) < _EAGER_ON_CPU
    if choice == "views" and not small:
        choice = "none"
    if choice != "none" and compiled:
        parts = " and ".join(["the views"] * small + ["the backbone"] * (choice == "all"))
        log.info(f"compiling {parts}: this takes half a minute or more the first time (training.compile=none skips it)")
        # It warns of a missing CUDA toolkit, which does not matter on a CPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        mode = "reduce-overhead" if training.cuda_graphs else None
        layout = memory_format(method, device) if training.channels_last else torch.contiguous_format

        def compile_views() -> None:
            for maker in views.phases:
                maker.compile(mode, below=_EAGER_ON_CPU if device.type == "cpu" else None)
                for _ in range(2):  # CUDA graphs are recorded the second time
                    views_of_zeros(maker, source, share, device, layout)

        try:
            prepare_cache()
            try:
                compile_views()
            except Exception as error:
                if not is_of_files(error):
                    raise
                own_cache(in_one_line(error))
                compile_views()
        except Exception as error:  # compilers fail in many ways
            if is_out_of_memory(error):
                raise
            problem = in_one_line(error)
            if training.compile != "auto":
                raise UserError(f"training.compile: {choice}: {problem}; set training.compile=none") from error
            log.warning(f"nothing is compiled: {problem}")
            for maker in views.phases:
                maker.go_eager()
            choice = "none"
        if choice == "all":
            # If the user did not ask for it, a backbone that cannot be compiled must not end the run. A run that is
            # resumed may have been `auto`, and eager because the compiler failed.
            forgiving, said = training.compile == "auto" or not fresh, set[str]()

            def failed(problem: str) -> None:
                if not forgiving:
                    raise UserError(f"training.compile: all: {problem}; set training.compile=none")
                if problem not in said:
                    log.warning(f"not compiled: {problem}")
                said.add(problem)

            # Each phase's views need code of their own, up to torch's limit in all; beyond it, code is eager.
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, _CODE_FOR_A_PHASE * len(views.phases))
            for module in method.modules():
                if isinstance(module, Backbone | TransformerBlock):
                    compile_module(module, failed, mode)
    return dataclasses.replace(config, training=training.model_copy(update={"compile": choice}))


def batch_of_zeros(
    views: ViewMaker, source: Source, count: int, device: torch.device, *, labeled: bool = False
) -> SourceBatch:
    """Returns a micro-batch whose images are zeros, of the shapes that the source's have for these views."""
    shapes: list[tuple[int, ...]] = [(size, size) for size in views.sizes]
    if isinstance(source, ResidentSource):
        shapes = [tuple(source.images.shape[-2:])]
    channels = views.kinds[0].channels
    images = [torch.zeros((count, channels, *shape), dtype=torch.uint8, device=device) for shape in shapes]
    labels = torch.zeros(count, dtype=torch.int64, device=device) if labeled else None
    return SourceBatch(
        images, not isinstance(source, ResidentSource), labels, torch.arange(count), torch.arange(count), 0
    )


def views_of_zeros(
    views: ViewMaker, source: Source, count: int, device: torch.device, layout: torch.memory_format
) -> list[Tensor]:
    """Makes the views of such a micro-batch."""
    return views.make(batch_of_zeros(views, source, count, device), layout)
