"""How far a run is, in images as well as in steps, so that it goes on at the right point of another plan.

A resumed run may have other batches or other data, so that an epoch has another number of steps. Schedules, epochs and
the order of images are functions of the *plan's* step; checkpoints and log lines count the steps that were made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import index
from typing import Any

from sslcli.config.schema import TrainingOptions
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import RunInfo
from sslcli.data.plan import Plan


@dataclass(frozen=True)
class Position:
    """Where a run is in its plan.

    Attributes:
        step: of the plan: optimizer steps from the start, if every one had been made with this plan.
        made: optimizer steps that were made.
        seen: images that they had, over all processes.
        epochs: of the run.
        images: of an epoch.
        batch_size: images of a step.
        steps_per_epoch: of the plan.
    """

    step: int
    made: int
    seen: int
    epochs: int
    images: int
    batch_size: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def last(self) -> int:
        """The number of steps that will have been made at the end."""
        return self.epochs * self.steps_per_epoch + self.made - self.step

    def at(self, step: int) -> Position:
        """Returns the position at another step of the same plan."""
        seen = self.seen + self._images_before(step) - self._images_before(self.step)
        values = asdict(self) | {"step": step, "made": self.made + step - self.step, "seen": seen}
        return Position(**values)

    def _images_before(self, step: int) -> int:
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * min(self.steps_per_epoch * self.batch_size, self.images) + steps * self.batch_size

    def moved(self, now: Position) -> Position:
        """Returns the position in another plan: after as many epochs, and the same share of the current one.

        With other batches that is the same number of images, rounded down to whole batches.
        """
        same = ("images", "batch_size", "steps_per_epoch")
        step = self.step
        if any(getattr(self, name) != getattr(now, name) for name in same):
            epochs, steps = divmod(self.step, self.steps_per_epoch)
            images = min(steps * self.batch_size, self.images) * now.images // self.images
            step = epochs * now.steps_per_epoch + min(images // now.batch_size, now.steps_per_epoch)
        return Position(**asdict(now) | {"step": step, "made": self.made, "seen": self.seen})


def beginning(info: RunInfo, images: int) -> Position:
    """Returns the position of a run that has not begun, with so many images in an epoch."""
    return Position(0, 0, 0, info.epochs, images, info.batch_size, info.steps_per_epoch)


def stored_position(document: dict[str, Any], images: int) -> Position:
    """Returns the position that a checkpoint has; one of a version that did not store it is taken to be of a run with
    so many images, unless its epochs had another number of steps.

    Raises:
        TypeError, ValueError: what is stored is none.
    """
    if "position" in document:
        stored = Position(**{name: index(value) for name, value in document["position"].items()})
        if min(asdict(stored).values()) < 0 or min(stored.images, stored.batch_size, stored.steps_per_epoch) < 1:
            raise ValueError(f"position {asdict(stored)}")
        return stored
    training, step = document["config"]["training"], document["step"]
    plan = Plan(
        "data", max(images, training["batch_size"]), training["batch_size"], training.get("accumulate", 1),
        world_size=document["world_size"], drop_last=training.get("drop_last", True),
    )  # fmt: skip
    per_epoch, epoch = plan.steps_per_epoch, (document.get("card") or {}).get("epoch") or 0
    if epoch and abs(step / per_epoch - epoch) > 1e-3 * epoch + 1e-4:
        per_epoch = max(round(step / epoch), 1)
        images = per_epoch * plan.batch_size
    found = Position(0, 0, 0, training["epochs"], images, plan.batch_size, per_epoch)
    return found.at(step)


def check_length(before: Position, training: TrainingOptions) -> None:
    """Raises UserError if the run is to be shorter than it is already."""
    if before.epoch > training.epochs:
        raise UserError(
            f"training.epochs: {training.epochs}, and {before.epoch:.4g} of the run's {before.epochs} epochs are done "
            f"already: set it to {-(-before.step // before.steps_per_epoch)} or more, or start a new run with another "
            "--output"
        )


def length_lines(
    before: Position, now: Position, max_steps: int | None = None, lr: Callable[[int], float] | None = None
) -> list[str]:
    """Returns what another plan, or `training.max_steps`, means to a resumed run; nothing if nothing differs.

    `lr`: the base learning rate of a batch size.
    """
    lines = []
    if max_steps is not None and max_steps < now.made:
        lines.append(f"training.max_steps: {max_steps}, and {now.made} steps are made already: nothing is trained")
    lrs = [lr(each.batch_size) for each in (before, now)] if lr is not None else [0, 0]
    if lrs[0] != lrs[1]:
        batches = f"batches of {now.batch_size:,} images instead of {before.batch_size:,}"
        lines.append(f"{batches}: lr {lrs[0]:.3g} → {lrs[1]:.3g} (optimizer.scale_lr)")
    if (now.steps_per_epoch, now.epochs, now.step) == (before.steps_per_epoch, before.epochs, before.step):
        return lines
    parts = []
    if now.epochs != before.epochs:
        parts.append(f"{now.epochs} epochs instead of {before.epochs}")
    if now.steps_per_epoch != before.steps_per_epoch:
        parts.append(f"an epoch is {now.steps_per_epoch:,} steps instead of {before.steps_per_epoch:,}")
    parts.append(f"the run goes on at epoch {now.epoch:.4g}, to step {now.last:,} instead of {before.last:,}")
    return [*lines, f"{', '.join(parts)}; schedules follow the epochs"]
