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

from .compilation import views_of_zeros
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
    training, method, device = session.config.training, session.method.train(), session.device
    share = min(training.batch_size // (training.accumulate * distributed.world_size()), FEW)
    layout = memory_format(method, device) if training.channels_last else torch.contiguous_format
    labels = torch.zeros(share, dtype=torch.int64, device=device) if session.has_labels else None
    frozen = frozen_state(method)
    kept = {n: tensor if n in frozen else tensor.clone() for n, tensor in method.state_dict().items()}
    first_steps = [0, *(begin for begin, _ in session.views.later)]
    phases = list(zip(keyed_phases(session.config), session.views.phases, first_steps, strict=True))
    # First those that network and method were built for: what fails on these too keeps its own traceback.
    phases.sort(key=lambda phase: max(phase[1].sizes), reverse=True)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.compiler.set_stance("force_eager"),
        session.autocast(),
    ):
        for (key, _), maker, step in phases:
            views = [View(view) for view in views_of_zeros(maker, session.source, share, device, layout)]
            schedule = {n: torch.full((), at(step), device=device) for n, at in method.schedules().items()}
            keys = DrawKeys(session.config.seed, step, 0, torch.arange(share))
            try:
                method(Batch(views, labels, torch.arange(share), schedule, keys))
            except Exception as error:  # a plugin may fail in any way
                if maker is phases[0][1] or is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"{key}: {session.config.method.name!r} with {session.config.backbone.name!r} cannot take views of "
                    f"{maker}: it is built for {phases[0][1]} ({type(error).__name__}: {reason})"
                ) from error
    method.load_state_dict(kept)
