"""Weights that a run starts from: a file, or what a backbone's publisher offers, held against the network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError

from . import files

log = logging.getLogger(__name__)

#: What torchvision and timm call the parts behind the features; the last three are auxiliary classifiers.
CLASSIFIERS = ("fc.", "classifier.", "heads.", "head.", "aux1.", "aux2.", "AuxLogits.")
#: Missing in files older than the buffer, and of no effect on the features.
_COUNTER = "num_batches_tracked"


def start_from(backbone: Backbone, name: str, options: Any) -> None:
    """Loads the weights that the options name (`weights`, or what `published_state` returns), where they name any.

    Args:
        backbone: fresh, on the CPU.
        name: what the config calls it, for messages.
        options: the backbone's options.

    Raises:
        UserError: no such file, a damaged one, or weights of another network; names the first key that differs.
    """
    path = getattr(options, "weights", None)
    if path is not None:
        source = f"backbone.weights: {path}"
        state = read_weights(path)
    else:
        published = backbone.published_state()
        if published is None:
            return
        source, state = f"backbone: the published weights of {name!r}", published
    fitting, left_out = fit(state, backbone.export_state()[0], source, name)
    try:
        backbone.import_state(fitting)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: do not fit {name!r} ({reason})") from error
    without = f", without the classifier ({', '.join(left_out)})" if left_out else ""
    log.info(f"{source}: the backbone starts from these weights{without}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads any safetensors file; what is ours is checked against its hashes, and its card ignored.

    Args:
        path: relative to the working directory; `~` is expanded.

    Raises:
        UserError: no such file, a damaged one, or a checkpoint.
    """
    place = f"backbone.weights: {path}"
    path = path.expanduser()
    if path.is_dir():
        raise UserError(f"{place}: is a directory; name a safetensors file, such as the backbone.safetensors in a run")
    try:
        state, document = files.read(path) if files.is_ours(path) else (files.read_foreign(path), {})
    except FileNotFoundError:
        raise UserError(f"{place}: no such file") from None
    except files.DamagedFile as error:
        raise UserError(f"backbone.weights: {error}") from error
    if "encoder" in document:
        raise UserError(f"{place}: is a checkpoint; make a file of its backbone first: ssl export backbone {path}")
    return state


def fit(
    state: dict[str, Tensor], wanted: dict[str, Tensor], source: str, name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Picks what a network needs from a state.

    Args:
        state: the weights there are.
        wanted: the network's own, under the same names.
        source: where they are from, for messages.
        name: what the config calls the network.

    Returns:
        the state in the network's names, and the classifier's names that were left out.

    Raises:
        UserError: naming the first key that is missing, of another shape, or unknown.
    """
    fitting: dict[str, Tensor] = {}
    for key, own in wanted.items():
        found = state.get(key)
        if found is None and key.rpartition(".")[2] == _COUNTER:
            found = own
        if found is None:
            raise UserError(f"{source}: has no {key!r}, which {name!r} needs: {_advice(state)}")
        if found.shape != own.shape:
            raise UserError(
                f"{source}: {key!r} is {tuple(found.shape)} there and {tuple(own.shape)} in {name!r} as configured: "
                f"{_advice(state)}"
            )
        fitting[key] = found
    rest = [key for key in state if key not in wanted]
    for key in rest:
        if not key.startswith(CLASSIFIERS):
            raise UserError(f"{source}: has {key!r}, which {name!r} as configured does not have: {_advice(state)}")
    return fitting, rest


def _advice(state: dict[str, Tensor]) -> str:
    keys = ", ".join(list(state)[:2]) or "nothing"
    return f"weights must be of the same network, options, channels and view size (the file begins with {keys})"
