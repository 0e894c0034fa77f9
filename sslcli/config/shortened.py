"""A warm-up that belongs to a longer run than the one that is asked for."""

from __future__ import annotations

import logging
from typing import Any

from .document import Document
from .schema import TrainingOptions

log = logging.getLogger(__name__)

#: The part of a shortened run that its warm-up is: the published recipes have 1 to 13%.
SHARE = 0.1


def fitting(schedule: Any, training: TrainingOptions, document: Document) -> Any:
    """Returns the options of a schedule whose warm-up is a tenth of the run, if it was longer than the whole run, and
    whoever set the number of epochs did not set the warm-up with it.

    What is the method's default gives way to a file, and what is in a file to the command line. Anything else is an
    error, which the schedule raises.
    """
    epochs = getattr(schedule, "warmup_epochs", None)
    if not isinstance(epochs, float) or epochs <= training.epochs:
        return schedule
    warm_up = _rank(document, "schedule", "warmup_epochs")
    if warm_up and warm_up >= _rank(document, "training", "epochs"):
        return schedule
    shorter = training.epochs * SHARE
    length = f"{training.epochs} epoch{'s' * (training.epochs > 1)}"
    log.info(f"schedule.warmup_epochs: {shorter:g} instead of {epochs:g}: the whole run has {length}")
    return schedule.model_copy(update={"warmup_epochs": shorter})


def sets_warmup(document: Document) -> bool:
    """Returns whether a config sets the length of the warm-up, rather than leave it to the method's defaults."""
    return any(_rank(document, "schedule", name) for name in ("warmup_epochs", "warmup_steps"))


def _rank(document: Document, section: str, name: str) -> int:
    """0 for a default, 1 for a file, 2 for what is set for this run alone."""
    data = document.data.get(section)
    if not isinstance(data, dict) or data.get(name) is None:
        return 0
    return 2 if document.origin((section, name)) in ("command line", "sslcli.train") else 1
