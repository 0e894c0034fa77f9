"""`load_classifier`: what `ssl eval` trained, from images to scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sslcli.logs import on_console
from sslcli.plugins import registered

from .objects import Classes
from .run import Run

if TYPE_CHECKING:
    from torch import nn


def load_classifier(path: Run | str | Path) -> nn.Module:
    """Loads a classifier that `ssl eval --method linear`, `logistic` or `finetune` trained.

    Args:
        path: a file of `ssl export classifier`, a result (`RUN/eval/linear.json`), or a run, whose newest is taken.

    Returns:
        a module on the CPU, in `eval()`: images (N, C, H, W) in [0, 1], of the network's size → scores (N, K) of its
        `classes`.

    Raises:
        sslcli.contracts.errors.UserError: there is none, a damaged file, or one whose network is gone.
    """
    from sslcli.evaluation.classifier import load_classifier as load_with_network
    from sslcli.exporters.network import Network

    classes: Classes = path.classes if isinstance(path, Run) else {}
    with on_console(), registered(classes):
        return Network(load_with_network(path.path if isinstance(path, Run) else Path(path)), normalize=True)
