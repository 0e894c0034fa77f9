"""Views that change in a run: the step that each phase begins with, and the size that the backbone is built for."""

from __future__ import annotations

from collections.abc import Iterator

from sslcli.config.resolve import RunConfig
from sslcli.config.view_phases import ViewPhase, share_of_run
from sslcli.contracts.errors import UserError


def keyed_phases(config: RunConfig) -> Iterator[tuple[str, ViewPhase]]:
    """Yields the config's phases, each with the key of its views."""
    several = len(config.view_phases) > 1
    for number, phase in enumerate(config.view_phases):
        yield f"views.phases.{number}.views" if several else "views", phase


def largest_view(config: RunConfig) -> int:
    """Returns the side in pixels of the largest view of all phases."""
    return max(view.size for phase in config.view_phases for view in phase.views)


def first_steps(config: RunConfig, total_steps: int) -> list[int]:
    """Returns the index of the step with which the second phase begins, the third, and so on.

    Raises:
        UserError: a phase would have no step.
    """
    ends = [
        round(share_of_run(phase.until, config.training.epochs) * total_steps)
        for phase in config.view_phases
        if phase.until is not None
    ]
    for number, (begin, end) in enumerate(zip([0, *ends], [*ends, total_steps], strict=True)):
        if begin >= end:
            raise UserError(f"views.phases.{number}: has none of the run's {total_steps} steps; change its `until`")
    return ends
