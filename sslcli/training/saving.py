"""When checkpoints are saved: after epochs and steps, which all processes count, and by the clock of the first one."""

from __future__ import annotations

import time
from collections.abc import Callable

from sslcli.config.schema import CheckpointOptions
from sslcli.contracts.errors import SslError, UserError
from sslcli.runs.backbone_file import save_backbone
from sslcli.runs.directory import RunDirectory
from sslcli.storage import unwritable

from .context import Context
from .setup import Session


class SavePlan:
    """What `checkpoints:` of a config means for a session.

    Args:
        options: of that section.
        steps_per_epoch: of the run.
        by_time: whether this process looks at the clock.
    """

    def __init__(self, options: CheckpointOptions, steps_per_epoch: int, *, by_time: bool) -> None:
        periods = [options.every_steps, options.every_epochs and options.every_epochs * steps_per_epoch]
        self.periods = [period for period in periods if period]
        self.seconds = 60 * options.every_minutes if by_time and options.every_minutes is not None else None
        self.restart()

    def is_regular(self, step: int) -> bool:
        """Returns whether a checkpoint is saved after this step whatever the time."""
        return any(step % period == 0 for period in self.periods)

    @property
    def regular(self) -> Callable[[int], bool] | None:
        """The checkpoints that `keep` counts; None: all, where they are saved by time alone."""
        return self.is_regular if self.periods else None

    def restart(self) -> None:
        """Begins to count the minutes: a checkpoint has been saved, or the first step is about to be made."""
        self.began = time.monotonic()

    def is_overdue(self) -> bool:
        """Returns whether the last checkpoint was saved too long ago."""
        return self.seconds is not None and time.monotonic() - self.began >= self.seconds


def write_backbone(directory: RunDirectory, session: Session, context: Context) -> None:
    """Writes the backbone of a run whose last checkpoint is on the disk."""
    try:
        save_backbone(directory.backbone, session.method.encoder(), session.card(context.progress))
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        text = f"{directory.backbone}: {unwritable(error.__cause__)}"
        raise SslError(f"{text}; the run is done and saved: --resume writes it") from error
