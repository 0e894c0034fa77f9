"""A training run from its config to its backbone: start or resume, steps, log lines, checkpoints, the end."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import SslError
from sslcli.logs import lines_to
from sslcli.memory import out_of_memory
from sslcli.plugin_exits import named_exits
from sslcli.plugins import PluginFile
from sslcli.runs import files
from sslcli.runs.arithmetic import settings_restored
from sslcli.runs.checkpoint import Checkpoint, CheckpointWriter, newest_intact, read_checkpoint
from sslcli.runs.directory import RunDirectory

from . import group as process_group
from . import state
from .compiler import failures_reported
from .context import Context
from .interrupt import Interrupt
from .loop import Loop
from .memory import less_memory
from .prepare import prepared, together
from .preview import write_views
from .report import measure_quality, show_end, show_memory, show_start
from .resume import read as read_resumable
from .saving import SavePlan, write_backbone
from .setup import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended; `signal`: the number of the one that interrupted it; `stopped`: why a callback did."""

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
        process_group.joined(config.training.device, config.training.stall_timeout),
        lines_to(tell if distributed.rank() == 0 else None),
        closing(directory),
    ):
        checkpoint = _find_checkpoint(directory, resume=resume)
        session = prepared(config, checkpoint, output, plugin_files)

        def begin() -> None:
            if distributed.rank() == 0:
                resumed, steps = checkpoint is not None, session.last_step + session.shift
                about = {**session.made_with, "position": dataclasses.asdict(session.position)}
                directory.create(session.config.plain(), list(command), resumed=resumed, steps=steps, about=about)
                log.info(f"run directory: {output}")
                show_start(session)
                for file in plugin_files:
                    directory.keep_plugin(file)
                directory.open_log(from_step=checkpoint.step if checkpoint is not None else 0)

        with closing(session.source), directory.ending() as outcome, process_group.losses_named():
            together(session.source.prepare)
            together(begin)
            log.debug(f"set up in {time.perf_counter() - began:.1f} s")
            result = _fit(session, directory, checkpoint, began)
            outcome.append("done" if result.signal is None else "interrupted")
            return result


def _find_checkpoint(directory: RunDirectory, *, resume: bool) -> Checkpoint | None:
    """The first process chooses the checkpoint to resume from, and the others read the same file."""
    main = distributed.rank() == 0

    def choose() -> Checkpoint | None:
        found = main and directory.claim(resume=resume)
        return newest_intact(directory.checkpoints, read_resumable) if found else None

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


def _fit(session: Session, directory: RunDirectory, checkpoint: Checkpoint | None, began: float) -> TrainResult:
    """Runs the remaining steps, with callbacks, log lines and checkpoints between them."""
    training, checkpoints, per_epoch = session.config.training, session.config.checkpoints, session.info.steps_per_epoch
    context = Context(session, directory)
    saves = SavePlan(checkpoints, per_epoch, by_time=context.is_main)
    needs_less = out_of_memory(lambda: _where(context), lambda: less_memory(session.config))
    regular, shift = saves.regular, session.shift
    # Those of an earlier plan, in whose steps these are not regular, count too.
    before = 0 if checkpoint is None or not shift else checkpoint.step
    is_regular = None if regular is None else lambda made: made <= before or regular(made - shift)
    writer = CheckpointWriter(directory.checkpoints, checkpoints.keep, is_regular)
    start = session.position.step
    if checkpoint is not None:
        writer.last_step = checkpoint.step
    with named_exits(), needs_less, failures_reported(), closing(writer):
        loop = Loop(session, context, start)
        loop.checks.last_good = writer.last_good
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
                        if checkpoint is None and context.is_main:
                            write_views(session, directory.path)
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
            stopped = context.stop_reason if not signal else None
            is_done = context.progress.step == session.last_step or stopped is not None

            def write() -> None:
                writer.check()
                if is_done:
                    write_backbone(directory, session, context)

            # The others wait for it: torchrun ends all processes as soon as one has ended with a signal's code.
            distributed.lead(write, lambda _: None)
            if is_done and context.is_main and images:
                measure_quality(context, images)
            outcome.append("interrupted" if signal else "done")
    if context.is_main and not signal:
        show_end(directory, context.progress.step - start, time.perf_counter() - began, rate)
    if stopped is not None:
        log.info(f"ended at step {context.progress.made} of {session.last_step + shift}: {stopped}")
    made, total = context.progress.made, session.info.total_steps + shift
    return TrainResult(directory.path, made, total, signal or None, stopped)


def _first_reason(own: str | None) -> str:
    """Of all processes, in the order of their ranks."""
    return next(reason for reason in distributed.gather_objects(own) if reason is not None)


def _where(context: Context) -> str:
    """The last step that ended, and of which process: those of a group need not run out of memory together."""
    process = f" on process {distributed.rank()}" if distributed.is_distributed() else ""
    return f"{f'after step {context.progress.made}' if context.progress.made else 'in the first step'}{process}"


def _save(loop: Loop, writer: CheckpointWriter) -> None:
    """Hands a snapshot to the writer; a run whose loss or state is not finite ends here instead."""
    loop.checks.check_loss()
    session, progress, is_main = loop.session, loop.context.progress, loop.context.is_main
    cursor = session.source.cursor()  # of all processes
    tensors, numbers = state.collect(session.method, session.optimizer, session.callbacks) if is_main else ({}, {})
    loop.checks.check_state(tensors, progress.made)
    if progress.made == writer.last_step or not is_main:
        return
    encoder = session.method.encoder()
    document: dict[str, Any] = {
        "step": progress.made,
        "position": dataclasses.asdict(session.position.at(progress.step)),
        "config": session.config.plain(),
        "numbers": numbers,
        "scaler": session.scaler.state_dict(),
        "encoder": next(f"{state.METHOD}{k}." for k, module in session.method.named_modules() if module is encoder),
        "card": dataclasses.asdict(session.card(progress)),
        "world_size": distributed.world_size(),
        "resident": session.resident,
        "cursor": cursor,
        "frozen": session.frozen,
        **session.made_with,
    }
    try:
        writer.join()  # one snapshot at a time: torch keeps their pinned memory
        writer.save(progress.made, files.snapshot(tensors), document)
    except ValueError as error:
        raise SslError(f"method {session.config.method.name!r} cannot be saved: {error}") from error
