"""Initial weights of a run's backbone, from a file or as published, checked against the network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.storage import expanded
from sslcli.weight_files import head, is_torch_file, named_weights, read_torch

from . import files
from .backbone_file import check_types
from .finite import first_non_finite

log = logging.getLogger(__name__)

#: Names in torchvision and timm of the layers after the features; the last three are auxiliary classifiers.
CLASSIFIERS = ("fc.", "classifier.", "heads.", "head.", "aux1.", "aux2.", "AuxLogits.")
#: Missing in files older than this buffer, which has no effect on the features.
_COUNTER = "num_batches_tracked"


def start_from(backbone: Backbone, name: str, options: Any) -> None:
    """Loads the weights that the options name (`weights`, or those that `published_state` returns), if any.

    Args:
        backbone: newly built, on the CPU.
        name: its name in the config, for messages.
        options: the backbone's options.

    Raises:
        UserError: no such file, a damaged one, or weights of another network; names the first key that differs.
    """
    path = getattr(options, "weights", None)
    if path is not None:
        source = f"backbone.weights: {path}"
        state = _read(path, backbone.export_state()[0])
    else:
        published = backbone.published_state()
        if published is None:
            return
        source, state = f"backbone: the published weights of {name!r}", published
    left_out = fill(backbone, state, source, name)
    without = f", without the classifier ({', '.join(left_out)})" if left_out else ""
    log.info(f"{source}: the backbone starts from these weights{without}")


def _read(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads the weights of any file; those of one written by `ssl` are checked against their hashes, and its card is
    ignored."""
    source = f"backbone.weights: {path}"
    path = expanded(path)
    if path.is_dir():
        raise UserError(f"{source}: is a directory; name a weight file, such as the backbone.safetensors in a run")
    try:
        if is_torch_file(path) or not files.is_ours(path):
            return read_weights(path, expected)
        state, document = files.read(path)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except (files.DamagedFile, UserError) as error:
        raise UserError(f"backbone.weights: {error}") from error
    if "encoder" in document:
        raise UserError(f"{source}: is a checkpoint; export its backbone first: ssl export backbone {path}")
    return state


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads a file of weights that others wrote; nothing in it is executed.

    Args:
        path: safetensors, or what `torch.save` wrote (also Lightning's checkpoints).
        expected: the network's weights; prefixes of wrappers (`module.`) are cut off if no name is among theirs.

    Raises:
        UserError: damaged, or no weights in it.
    """
    try:
        found: Any = read_torch(path) if is_torch_file(path) else files.read_foreign(path)
    except files.DamagedFile as error:
        if path.is_file() and head(path, 200).lstrip().startswith(b"<"):
            raise UserError(f"{path}: is a web page, not weights; download the file itself") from error
        other = "" if path.suffix == ".safetensors" else "; nor is it what torch.save writes"
        raise UserError(f"{error}{other}") from error
    return named_weights(path, found, expected)


def fill(backbone: Backbone, state: dict[str, Tensor], source: str, name: str) -> list[str]:
    """Loads from a state, under the names of `export_state`, the weights that a network needs.

    Args:
        backbone: on the CPU.
        state: the available weights.
        source: of the weights, for messages.
        name: of the network, for messages.

    Returns:
        the names of the classifier's weights, which are left out.

    Raises:
        UserError: naming the first key that is missing, of another shape, unknown, or not finite.
    """
    wanted = backbone.export_state()[0]
    fitting: dict[str, Tensor] = {}
    for key, own in wanted.items():
        found = state.get(key)
        if found is None and key.endswith(_COUNTER):
            found = own
        if found is None:
            raise UserError(f"{source}: has no {key!r}, which {name!r} needs: {_advice(state)}")
        if found.shape != own.shape:
            raise UserError(
                f"{source}: {key!r} is {tuple(found.shape)} there, but {tuple(own.shape)} in {name!r} as configured: "
                f"{_advice(state)}"
            )
        fitting[key] = found
    rest = [key for key in state if key not in wanted]
    for key in rest:
        if not key.startswith(CLASSIFIERS):
            raise UserError(f"{source}: has {key!r}, which {name!r} as configured does not have: {_advice(state)}")
    bad = first_non_finite(fitting)
    if bad is not None:
        raise UserError(
            f"{source}: {bad!r} is not finite (it has NaN or infinity): take weights of a run that was intact"
        )
    try:
        check_types(wanted, fitting)
        backbone.import_state(fitting)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: the weights do not fit {name!r} ({reason})") from error
    return rest


def _advice(state: dict[str, Tensor]) -> str:
    keys = ", ".join(list(state)[:2]) or "nothing"
    return f"weights must be of the same network, options, channels and view size (the file begins with {keys})"
