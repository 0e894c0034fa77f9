"""What a run needs, from scratch or as a checkpoint has it: built and checked before anything is written."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.data.source import resident_budget
from sslcli.memory import out_of_memory
from sslcli.optimizers.groups import effective_lr
from sslcli.plugin_exits import named_exits
from sslcli.plugins import PluginFile
from sslcli.runs.backbone_file import read_card
from sslcli.runs.checkpoint import Checkpoint, understood

from . import resume as resuming
from . import state
from .position import check_length, length_lines, stored_position
from .provenance import changes, provenance
from .regrouped import other_processes
from .setup import SMALLER, Session, build, device_resolved, plan
from .trial import check_micro_batch, check_phases

log = logging.getLogger(__name__)

T = TypeVar("T")


def together(work: Callable[[], T]) -> T:
    """Calls `work` on every process; if any has an SslError or too little memory for it, that is raised on all."""

    def guarded() -> T:
        with named_exits(), out_of_memory("before the first step", SMALLER):
            return work()

    return distributed.together(guarded)


def prepared(
    config: RunConfig,
    checkpoint: Checkpoint | None,
    output: Path,
    plugin_files: Sequence[PluginFile] = (),
    *,
    compiled: bool = True,
    processes: int | None = None,
) -> Session:
    """Builds what a run needs, as it is in a checkpoint if there is one, and writes nothing.

    Args:
        config: the whole configuration.
        checkpoint: to resume from; None: the run begins.
        output: the run directory, for messages.
        plugin_files: that were given.
        compiled: see `build`.
        processes: that will train it; None: those that there are.

    Raises:
        UserError: the input or a plugin is wrong, or the run cannot be resumed so.
    """
    if checkpoint is not None:
        with understood(checkpoint.path):
            config = resuming.keep_resolved(config, checkpoint.document["config"])
    budgets = distributed.gather_objects(together(lambda: _budget(config, checkpoint)))
    there = processes or distributed.world_size()
    session = together(lambda: _built(config, checkpoint, output, min(budgets), compiled, there))
    # By the main process alone: on a network's file system each of the files that it looks at takes a while.
    made_with = together(lambda: provenance(session, plugin_files) if distributed.rank() == 0 else {})
    session.made_with = distributed.from_main(made_with)
    together(lambda: _begun(session, checkpoint, output, there))
    together(lambda: check_micro_batch(session, processes))
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


def _built(
    config: RunConfig,
    checkpoint: Checkpoint | None,
    output: Path,
    budget: float,
    compiled: bool,
    processes: int,
) -> Session:
    if checkpoint is not None:
        with understood(checkpoint.path):
            warnings = resuming.check(config, checkpoint.document["config"], str(output))
        for warning in warnings:
            log.warning(warning)
    stored = None if checkpoint is None else checkpoint.document.get("card")
    card = read_card(checkpoint.path, stored) if checkpoint is not None and stored is not None else None
    statistics = (card.mean, card.std) if card is not None else None
    return build(
        config, fresh=checkpoint is None, compiled=compiled, budget=budget, statistics=statistics, processes=processes
    )


def _begun(session: Session, checkpoint: Checkpoint | None, output: Path, processes: int) -> None:
    """Puts a session where the run is, and says what is different from there on."""
    config = session.config
    if checkpoint is not None:
        with understood(checkpoint.path):
            _go_on(session, checkpoint)
            before = checkpoint.document["world_size"]
    if checkpoint is not None and before != processes:
        log.warning(other_processes(before, processes, session.method, config.training))
    if checkpoint is not None and checkpoint.document.get("resident") and not session.resident:
        log.warning("the images were all in memory and do not fit there now: results will not be bitwise identical")
    log.debug(f"plan: {', '.join(f'{name} {value}' for name, value in plan(session).items())}")
    if config.training.accumulate > 1 and session.method.batch_coupled:
        log.info(
            f"training.accumulate: {config.method.name!r} compares images within a batch, which is now a "
            f"micro-batch of only {config.training.batch_size // config.training.accumulate}"
        )
    if checkpoint is not None:
        with understood(checkpoint.path):
            state.restore(checkpoint, session.method, session.optimizer, session.callbacks)
            session.scaler.load_state_dict(checkpoint.document["scaler"])
            session.source.restore(checkpoint.document.get("cursor"))
        log.info(f"resuming {output} from step {checkpoint.step} of {session.last_step + session.shift}")


def _go_on(session: Session, checkpoint: Checkpoint) -> None:
    """Puts a session where a run is in its plan, and says what has changed since; UserError if it makes no sense."""
    before = stored_position(checkpoint.document, session.images)
    check_length(before, session.config.training)
    if "data" not in checkpoint.document and before.images != session.images:
        advice = "; train/ beside validation/ or valid/ is read alone now, a new run with data.split=all reads all"
        log.warning(
            f"the data has changed: about {before.images:,} images in the run, {session.images:,} now, in another order"
            f"{advice if session.config.data.name == 'folder' else ''}"
        )
    now = session.position = before.moved(session.position)
    options = session.config.optimizer.options
    for line in [
        *changes(checkpoint.document, session.made_with),
        *length_lines(before, now, session.config.training.max_steps, lambda size: effective_lr(options, size)),
    ]:
        log.warning(line)
