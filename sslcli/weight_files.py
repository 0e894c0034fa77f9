"""Weights in files of `torch.save`, in the forms that training scripts give them; nothing in a file is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.memory import is_out_of_memory

#: Where training scripts put the weights in a larger file, and what wrappers put before their names.
_NESTED = ("state_dict", "model", "model_state_dict", "teacher", "student")
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "encoder_q.", "base_encoder.")
#: How files of `torch.save` begin: an archive, or as before torch 1.6 a pickle.
_TORCH = (b"PK", b"\x80")


def is_torch_file(path: Path) -> bool:
    """Returns whether a file begins as those of `torch.save` do, whatever its name is."""
    return path.is_file() and head(path, 2).startswith(_TORCH)


def head(path: Path, count: int) -> bytes:
    """Returns the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(count)


def read_torch(path: Path) -> Any:
    """Returns what `torch.save` wrote; UserError if it holds more than plain values, or is compressed."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("a compressed archive")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises anything on an unknown file
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160].rstrip(": ")
        raise UserError(
            f"{path}: cannot be read as weights alone ({reason}); save its state_dict() with safetensors"
        ) from error


def named_weights(path: Path, found: Any, expected: Iterable[str]) -> dict[str, Tensor]:
    """Returns the weights in what a file holds, without prefixes of wrappers if no name is among the expected ones.

    Raises:
        UserError: there are none.
    """
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    pairs = found.items() if isinstance(found, dict) else ()
    state = {key: value for key, value in pairs if isinstance(value, Tensor) and isinstance(key, str)}
    if not state:
        raise UserError(f"{path}: holds no named weights; save the network's state_dict()")
    for prefix in _PREFIXES:
        if state.keys().isdisjoint(expected) and any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state
