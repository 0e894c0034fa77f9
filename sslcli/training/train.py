"""A training run from its config to its backbone: start or resume, steps, log lines, checkpoints, the end."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import SslError
from sslcli.data.source import resident_budget
from sslcli.logs import lines_to
from sslcli.memory import out_of_memory
from sslcli.plugins import PluginFile
from sslcli.runs import files
from sslcli.runs.arithmetic import settings_restored
from sslcli.runs.backbone_file import save_backbone
from sslcli.runs.checkpoint import Checkpoint, CheckpointWriter, newest_intact, read_checkpoint
from sslcli.runs.directory import RunDirectory
from sslcli.version import __version__

from . import group as process_group
from . import resume as resuming
from . import state
from .context import Context
from .interrupt import Interrupt
from .loop import Loop
from .memory import less_memory
from .regrouped import other_processes
from .report import measure_quality, show_end, show_memory, show_start
from .saving import SavePlan
from .setup import SMALLER, Session, build, device_resolved, plan
from .trial import check_phases

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended; `signal` is the number of the signal that interrupted it, or None; `stopped`, why a
    callback ended it."""

    directory: Path
    step: int
    total_steps: int
    signal: int | None
    stopped: str | None = None


def train(
    config: RunConfig,
    output: Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    plugin_files: Sequence[PluginFile] = (),
    tell: Callable[[str], None] | None = None,
) -> TrainResult:
    """Trains.

    Args:
        config: the whole configuration.
        output: the run directory.
        resume: resume the run there; start it if there is none.
        command: the command line, for `environment.json`.
        plugin_files: copied into the run directory.
        tell: shows messages to the user, as well as the handlers of the logger `sslcli`.

    Raises:
        UserError: the input or a plugin is wrong, and nothing was trained.
        SslError: the run failed; its last checkpoint is intact.
    """
    began = time.perf_counter()
    directory = RunDirectory(output)
    with (
        settings_restored(),
        process_group.joined(config.training.device),
        lines_to(tell if distributed.rank() == 0 else None),
    ):
        checkpoint = _find_checkpoint(directory, resume=resume)
        session = _prepared(config, checkpoint, output)

        def begin() -> None:
            if distributed.rank() == 0:
                resumed, steps = checkpoint is not None, session.last_step
                directory.create(session.config.plain(), list(command), resumed=resumed, steps=steps)
                log.info(f"run directory: {output}")
                show_start(session)
                for file in plugin_files:
                    directory.keep_plugin(file)
                directory.open_log(from_step=checkpoint.step if checkpoint is not None else 0)

        with closing(session.source), directory.ending() as outcome:
            together(session.source.prepare)
            together(begin)
            log.debug(f"set up in {time.perf_counter() - began:.1f} s")
            result = _fit(session, directory, checkpoint, began)
            outcome.append("done" if result.signal is None else "interrupted")
            return result


def together(work: Callable[[], T]) -> T:
    """Calls `work` on every process; if any has an SslError or too little memory for it, that is raised on all."""

    def guarded() -> T:
        with out_of_memory("before the first step", SMALLER):
            return work()

    return distributed.together(guarded)


def _find_checkpoint(directory: RunDirectory, *, resume: bool) -> Checkpoint | None:
    """The first process chooses the checkpoint to resume from, and the others read the same file."""
    main = distributed.rank() == 0

    def choose() -> Checkpoint | None:
        found = main and directory.check_new(resume=resume)
        return newest_intact(directory.checkpoints, read_checkpoint) if found else None

    chosen = together(choose)
    path = distributed.from_main(None if chosen is None else chosen.path)

    def read() -> Checkpoint | None:
        if main or path is None:
            return chosen
        try:
            return read_checkpoint(path)
        except (files.DamagedFile, FileNotFoundError) as error:
            raise SslError(f"{path}: rank {distributed.rank()} cannot read it: {error}") from error

    return together(read)


def _prepared(config: RunConfig, checkpoint: Checkpoint | None, output: Path) -> Session:
    if checkpoint is not None:
        config = resuming.keep_resolved(config, checkpoint.document["config"])
    budgets = distributed.gather_objects(together(lambda: _budget(config, checkpoint)))
    session = together(lambda: _prepare(config, checkpoint, output, min(budgets)))
    together(lambda: check_phases(session))
    return session


def _budget(config: RunConfig, checkpoint: Checkpoint | None) -> float:
    """Bytes of images that this process may keep on its device. A resumed run does again what it did, if it can: images
    are cropped on the device or in workers, which round differently."""
    _, device = device_resolved(config)
    if checkpoint is None:
        return resident_budget(device)
    resident = checkpoint.document.get("resident")
    if resident is None:  # a run of a version that looked at the size alone
        return resident_budget(device, share=1)
    return resident_budget(device, most=math.inf, share=1) if resident else 0


def _prepare(config: RunConfig, checkpoint: Checkpoint | None, output: Path, budget: float) -> Session:
    if checkpoint is not None:
        stored = checkpoint.document["config"]
        for warning in resuming.check(config, stored, str(output)):
            log.warning(warning)
    session = build(config, fresh=checkpoint is None, budget=budget)
    if checkpoint is not None and checkpoint.document["world_size"] != distributed.world_size():
        log.warning(other_processes(checkpoint.document["world_size"], session.method, config.training))
    if checkpoint is not None and checkpoint.document.get("resident") and not session.resident:
        log.warning("the images were all in memory and do not fit there now: results will not be bitwise identical")
    log.debug(f"plan: {', '.join(f'{name} {value}' for name, value in plan(session).items())}")
    if config.training.accumulate > 1 and session.method.batch_coupled:
        log.info(
            f"training.accumulate: {config.method.name!r} compares images within a batch, which is now a "
            f"micro-batch of only {config.training.batch_size // config.training.accumulate}"
        )
    if checkpoint is not None:
        state.restore(checkpoint, session.method, session.optimizer, session.callbacks)
        session.scaler.load_state_dict(checkpoint.document["scaler"])
        session.source.restore(checkpoint.document.get("cursor"))
        log.info(f"resuming {output} from step {checkpoint.step} of {session.last_step}")
    return session


def _fit(session: Session, directory: RunDirectory, checkpoint: Checkpoint | None, began: float) -> TrainResult:
    """Runs the remaining steps, with callbacks, log lines and checkpoints between them."""
    training, checkpoints, per_epoch = session.config.training, session.config.checkpoints, session.info.steps_per_epoch
    context = Context(session, directory)
    saves = SavePlan(checkpoints, per_epoch, by_time=context.is_main)
    needs_less = out_of_memory(lambda: _where(context), lambda: less_memory(session.config))
    writer = CheckpointWriter(directory.checkpoints, checkpoints.keep, saves.regular)
    start = 0
    if checkpoint is not None:
        start = writer.last_step = checkpoint.step
    with needs_less, closing(writer):
        loop = Loop(session, context, start)
        with Interrupt() as interrupt, context.ending() as outcome:
            context.start()
            loop.meter.reset()
            context.stop_reason, signal, first_step = None, 0, time.perf_counter()
            saves.restart()
            while context.progress.step < session.last_step and not signal and context.stop_reason is None:
                loop.step()
                step = context.progress.step
                context.step()
                if step == start + 1:
                    with loop.meter.pause():
                        context.first_step()
                        show_memory(session)
                if step % training.log_every == 0 or step == session.last_step:
                    context.log_line(loop.record())
                with loop.meter.pause():
                    if step % per_epoch == 0:
                        context.epoch()
                    if saves.is_regular(step):
                        _save(loop, writer)
                        saves.restart()
                # All processes stop after the same step, whichever has a reason; a signal comes first. One that stops
                # saves anyway, so that the first process's clock has the last word only where nobody wants to.
                wish = interrupt.number + 1 if interrupt.number else int(context.stop_reason is not None)
                wish, is_due = divmod(distributed.all_reduce_max(2 * wish + saves.is_overdue()), 2)
                if is_due and not wish:
                    with loop.meter.pause():
                        _save(loop, writer)
                    saves.restart()
                signal = max(wish - 1, 0)
                if wish == 1:
                    context.stop_reason = _first_reason(context.stop_reason)
            images, _, paused = loop.meter.totals()
            images *= session.info.world_size
            rate = images / (time.perf_counter() - first_step - paused)
            _save(loop, writer)
            writer.join()
            stopped = context.stop_reason if not signal else None
            if context.is_main and (context.progress.step == session.last_step or stopped is not None):
                save_backbone(directory.backbone, session.method.encoder(), session.card(context.progress))
                if images:
                    measure_quality(context, images)
            outcome.append("interrupted" if signal else "done")
    if context.is_main and not signal:
        show_end(directory, context.progress.step - start, time.perf_counter() - began, rate)
    if stopped is not None:
        log.info(f"ended at step {context.progress.step} of {session.last_step}: {stopped}")
    return TrainResult(directory.path, context.progress.step, session.info.total_steps, signal or None, stopped)


def _first_reason(own: str | None) -> str:
    """Of all processes, in the order of their ranks."""
    return next(reason for reason in distributed.gather_objects(own) if reason is not None)


def _where(context: Context) -> str:
    """The last step that ended, and of which process: those of a group need not run out of memory together."""
    process = f" on process {distributed.rank()}" if distributed.is_distributed() else ""
    return f"{f'after step {context.progress.step}' if context.progress.step else 'in the first step'}{process}"


def _save(loop: Loop, writer: CheckpointWriter) -> None:
    """Hands a snapshot to the writer; a run whose loss was not finite ends here instead."""
    loop.check_finite()
    session, progress = loop.session, loop.context.progress
    cursor = session.source.cursor()  # of all processes
    if progress.step == writer.last_step or not loop.context.is_main:
        return
    encoder = session.method.encoder()
    tensors, numbers = state.collect(session.method, session.optimizer, session.callbacks)
    document: dict[str, Any] = {
        "step": progress.step,
        "config": session.config.plain(),
        "numbers": numbers,
        "scaler": session.scaler.state_dict(),
        "encoder": next(f"{state.METHOD}{k}." for k, module in session.method.named_modules() if module is encoder),
        "card": dataclasses.asdict(session.card(progress)),
        "plugins": state.plugins_used(session.config),
        "world_size": distributed.world_size(),
        "resident": session.resident,
        "cursor": cursor,
        "frozen": session.frozen,
        "versions": {"sslcli": __version__, "torch": torch.__version__},
    }
    try:
        writer.join()  # one snapshot at a time: torch keeps their pinned memory
        writer.save(progress.step, files.snapshot(tensors), document)
    except ValueError as error:
        raise SslError(f"method {session.config.method.name!r} cannot be saved: {error}") from error
