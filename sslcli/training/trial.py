"""Whether views can be made, and a method takes those of every phase of a run, tried before anything is written."""

from __future__ import annotations

import torch

from sslcli import distributed
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, DrawKeys, View
from sslcli.data.crops import Cropper, Slice
from sslcli.memory import is_out_of_memory
from sslcli.runs.device import memory_format
from sslcli.views.pipeline import ViewMaker

from .compilation import views_of_zeros
from .loop import Scheduled
from .setup import Session
from .state import frozen_state
from .view_phases import keyed_phases

#: Images that a method is tried on at most: it is about the sizes of views, not about memory.
FEW = 4


def check_phases(session: Session) -> None:
    """Runs the method once on views of every phase; nothing where views do not change. No state is changed. Callables
    of the user's are called on an image first.

    Raises:
        UserError: the method cannot take the views of another phase than that with the largest ones, or a callable
            fails.
    """
    if isinstance(session.dataset, Dataset) and any(maker.in_workers for maker in session.views.phases):
        cropper = Cropper(session.dataset, session.views, session.config.seed)
        for step in (0, *(begin for begin, _ in session.views.later)):
            problem = cropper[Slice(0, 0, [0], step)].problem
            if problem:
                raise UserError(problem)
    if not session.views.later:
        return
    training = session.config.training
    share = min(training.batch_size // (training.accumulate * distributed.world_size()), FEW)
    first_steps = [0, *(begin for begin, _ in session.views.later)]
    phases = list(zip(keyed_phases(session.config), session.views.phases, first_steps, strict=True))
    # First those that network and method were built for: what fails on these too keeps its own traceback.
    phases.sort(key=lambda phase: max(phase[1].sizes), reverse=True)
    for (key, _), maker, step in phases:
        try:
            _try(session, maker, step, share)
        except Exception as error:  # a plugin may fail in any way
            if maker is phases[0][1] or is_out_of_memory(error):
                raise
            raise UserError(
                f"{key}: {session.config.method.name!r} with {session.config.backbone.name!r} cannot take views of "
                f"{maker}: it is built for {phases[0][1]} ({_reason(error)})"
            ) from error


def check_micro_batch(session: Session, processes: int | None = None) -> None:
    """Checks that there is something to learn from a micro-batch of so few images. No state is changed.

    Args:
        session: of the run.
        processes: that will share a batch; None: those that there are.

    Raises:
        UserError: the method compares images with each other, and there is one; or it has a batch norm, which has no
            variance over one image.
    """
    config, training = session.config, session.config.training
    there = distributed.world_size()
    processes = processes or there
    share = training.batch_size // (training.accumulate * processes)
    least, reason = config.method.cls.minimum_images(config.method.options), ""
    if share * processes < least:
        reason = f"learns from no fewer than {least} at a time, which it compares"
    elif share == 1:
        # On processes that are not there yet the images of all of them are in one batch norm, if it is synchronized.
        count = processes if training.sync_batch_norm and there == 1 else 1
        step, views = max([(0, session.views), *session.views.later], key=lambda phase: sum(phase[1].sizes))
        try:
            _try(session, views, step, count)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            _try(session, views, step, count + 1)  # what fails here too keeps its own traceback
            reason = f"with {config.backbone.name!r} cannot be trained on one image at a time ({_reason(error)})"
    if not reason:
        return
    where = f" on each of {processes} processes" if processes > 1 else ""
    parts = f"training.batch_size: {training.batch_size} images in {training.accumulate} micro-batch(es)"
    advice = [f"training.batch_size={max(least, 2) * training.accumulate * processes}"]
    if (fewer := training.batch_size // (max(least, 2) * processes)) and training.accumulate > 1:
        advice.insert(0, f"training.accumulate={fewer}")
    raise UserError(f"{parts} are {share} at a time{where}: {config.method.name!r} {reason}; set {' or '.join(advice)}")


def _try(session: Session, maker: ViewMaker, step: int, share: int) -> None:
    """Runs the method once on views of zeros of so many images; whatever it raises. State stays as it was."""
    training, method, device = session.config.training, session.method.train(), session.device
    layout = memory_format(method, device) if training.channels_last else torch.contiguous_format
    labels = torch.zeros(share, dtype=torch.int64, device=device) if session.has_labels else None
    frozen = frozen_state(method)
    kept = {n: tensor if n in frozen else tensor.clone() for n, tensor in method.state_dict().items()}
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.compiler.set_stance("force_eager"),
        session.autocast(),
    ):
        views = [View(view) for view in views_of_zeros(maker, session.source, share, device, layout)]
        schedule = Scheduled(method.schedules(), step, device)
        keys = DrawKeys(session.config.seed, step, 0, torch.arange(share))
        try:
            method(Batch(views, labels, torch.arange(share), schedule, keys))
        finally:
            method.load_state_dict(kept)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
