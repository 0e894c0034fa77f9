"""Safetensors files that are written atomically, and in which a changed byte is detected.

Each of these files has one canonical JSON document in its header, with a sha256 for each tensor, and the sha256 of the
document itself: without it, a flipped bit in the header could turn step 500 into 400 and load without an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sslcli.contracts.errors import SslError
from sslcli.storage import atomic_path

from .finite import first_non_finite

_DOCUMENT, _DIGEST, _TENSORS, _PLAIN = "sslcli", "sha256", "tensors", "plain"


class DamagedFile(Exception):
    """A file differs from what was written, or cannot be used; the message names the file and perhaps the tensor."""


class UnreadableFile(DamagedFile):
    """A file cannot be opened, for want of a permission or of a disk that answers: it may well be intact."""


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors to host memory, contiguous, so that they can be written while training continues.

    On return all values have arrived; of a CUDA device they are in pinned memory.

    Raises:
        ValueError: if two names share memory, which a file of independent tensors cannot express.
    """
    owners: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            other = owners.setdefault(tensor.untyped_storage().data_ptr(), name)
            if other != name:
                raise ValueError(f"{other} and {name} share memory; register one of them, or clone it")
    with _side_stream(tensors):
        return {name: _host_copy(tensor.detach()) for name, tensor in tensors.items()}


def _host_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cuda":  # made contiguous there; torch allocates pinned memory for such a copy
        return tensor.contiguous(memory_format=torch.contiguous_format).to("cpu", non_blocking=True)
    return tensor.to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)


@contextmanager
def _side_stream(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Copies from CUDA in the block go one behind the other, on a stream of their own; the host waits once, for all."""
    device = next((tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"), None)
    if device is None:
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:  # also after an error: nothing may be freed that a copy still reads or writes
        stream.synchronize()


def write(
    path: Path, tensors: dict[str, Tensor], document: dict[str, Any], plain: Mapping[str, str] | None = None
) -> None:
    """Writes contiguous CPU tensors and a JSON document; atomic and synced.

    Args:
        path: the file.
        tensors: by name.
        document: plain data.
        plain: header entries for other programs; checked like the rest.

    Raises:
        SslError: a tensor is not finite; nothing is written.
        OSError: it cannot be written; what `path` was before is intact.
    """
    bad = first_non_finite(tensors)
    if bad is not None:
        raise SslError(f"{path}: is not written: {bad} is not finite (it has NaN or infinity)")
    whole = {**document, _PLAIN: dict(plain)} if plain else document
    metadata = header({**whole, _TENSORS: {name: _digest(tensor) for name, tensor in sorted(tensors.items())}})
    with atomic_path(path, apart=True) as temporary:  # safetensors makes a temporary file of its own
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            found = re.search(r"\(os error (\d+)\)", str(error))  # the system's, which it has in its text alone
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def header(document: dict[str, Any]) -> dict[str, str]:
    """Returns the metadata of a header that `read_document` reads: the document, its hash, and its plain entries."""
    text = _canonical(document)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {**document.get(_PLAIN, {}), _DOCUMENT: text, _DIGEST: digest}


def read_document(path: Path) -> dict[str, Any]:
    """Reads only the JSON document of a file that `write` wrote.

    Raises:
        DamagedFile: if it is not such a file, or its document was changed.
        FileNotFoundError: if there is none.
    """
    with _opened(path) as file:
        return _document(path, file.metadata())


def read_digest(path: Path) -> str:
    """Returns the sha256 in the header of an intact file: of its document, and so of every tensor's hash in it."""
    with _opened(path) as file:
        digest: str = (file.metadata() or {}).get(_DIGEST, "")
        return digest


def is_ours(path: Path) -> bool:
    """Returns whether a safetensors file was written by `write`; raises like `read_document`."""
    with _opened(path) as file:
        return _DOCUMENT in (file.metadata() or {})


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file that others wrote; raises DamagedFile or FileNotFoundError."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping


def read(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors whose names begin with `prefix`, each checked against its hash, and the document.

    Raises:
        DamagedFile: naming the first tensor that is not what was written, or is not finite.
        FileNotFoundError: if there is no such file.
    """
    with _opened(path) as file:
        document = _document(path, file.metadata())
        tensors = dict(_checked(path, file, document.pop(_TENSORS, None), prefix))
    _require_finite(path, tensors)
    return tensors, document


def check(path: Path) -> None:
    """Raises what `read` would, in the memory of one tensor."""
    with _opened(path) as file:
        for name, tensor in _checked(path, file, _document(path, file.metadata()).get(_TENSORS)):
            _require_finite(path, {name: tensor})


def _checked(path: Path, file: Any, expected: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(expected, dict) or set(expected) != set(file.keys()):
        raise DamagedFile(f"{path}: is damaged: the list of tensors is not the one that was written")
    for name in sorted(name for name in expected if name.startswith(prefix)):
        tensor = file.get_tensor(name)
        if _digest(tensor) != expected[name]:
            raise DamagedFile(f"{path}: is damaged: the tensor {name} is not what was written")
        yield name, tensor


def _require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    bad = first_non_finite(tensors)
    if bad is not None:
        raise DamagedFile(f"{path}: {bad} is not finite (it has NaN or infinity): the run had diverged")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        if path.is_symlink() and not path.exists():
            raise DamagedFile(f"{path}: is a link to {os.readlink(path)}, where there is nothing")
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise DamagedFile(f"{path}: is damaged or not a safetensors file: it is not a regular file")
        path.open("rb").close()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        with _utf8_name(path) as name, safe_open(name, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]  # the last three: data types and documents that nobody writes
        raise DamagedFile(f"{path}: is damaged or not a safetensors file: {reason}") from error


@contextmanager
def _utf8_name(path: Path) -> Iterator[str]:
    """Another name of a file whose own is no UTF-8, which safetensors cannot open."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield name


def _document(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    if not metadata or _DOCUMENT not in metadata:
        raise DamagedFile(f"{path}: was not written by ssl (its header has no sslcli document)")
    text = metadata[_DOCUMENT]
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get(_DIGEST):
        raise DamagedFile(f"{path}: is damaged: its header is not what was written")
    document: dict[str, Any] = json.loads(text)
    plain = document.get(_PLAIN, {}) if isinstance(document, dict) else None
    if not isinstance(plain, dict):
        raise DamagedFile(f"{path}: was not written by ssl (its sslcli document is no mapping)")
    if {**plain, _DOCUMENT: text, _DIGEST: metadata[_DIGEST]} != metadata:
        raise DamagedFile(f"{path}: is damaged: its header is not what was written")
    return document


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}\0".encode())
    if tensor.numel():
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
