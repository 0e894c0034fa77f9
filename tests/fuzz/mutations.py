"""Changes of files: bytes, plain data, and safetensors files whose hashes are right again afterward."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli.runs import files

#: What stands in the place of a value that was there.
NONSENSE: list[Any] = [
    None, True, 0, -1, -5, 1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x", "3", "\x00",
    "é\n", "a" * 500,
    [], [1], ["x"], [[]], {}, {"x": 1}, {"name": 5}, [None, {}],
]  # fmt: skip
#: What readers may look for.
WORDS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"- ", b": ", b"{", b"[", b'"', b"&a", b"*a", b"!!python", b"\t",
    b"NaN", b"<html>",
]  # fmt: skip


def of_bytes(content: bytes, chance: random.Random) -> bytes:
    """One to four changes: bits, bytes, parts that are cut, doubled, moved, or put in."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        size = chance.choice((1, 2, 4, 8, 64, 1000))
        kind = chance.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + size] = chance.randbytes(size)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size] * chance.randint(1, 3)
        elif kind == 4:
            changed[at:at] = chance.choice(WORDS) * chance.choice((1, 1, 3, 100))
        elif kind == 5:
            changed[at : at + 4] = chance.choice((b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80"))
        elif chance.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def of_data(data: Any, chance: random.Random) -> Any:
    """One or two values of plain data replaced, removed, renamed, or put elsewhere."""
    changed = copy.deepcopy(data)
    for _ in range(chance.randint(1, 2)):
        slots: list[tuple[Any, Any]] = []
        waiting = [changed]
        while waiting:
            parent = waiting.pop()
            for key in parent if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else ():
                slots.append((parent, key))
                waiting.append(parent[key])
        if not slots:
            return chance.choice(NONSENSE)
        parent, key = chance.choice(slots)
        kind = chance.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[str(chance.choice(NONSENSE))] = parent.pop(key)
        elif kind == 2:
            other, name = chance.choice(slots)
            known = name in other if isinstance(other, dict) else name < len(other)
            parent[key] = copy.deepcopy(other[name]) if known else None
        else:
            parent[key] = copy.deepcopy(chance.choice(NONSENSE))
    return changed


def of_tensors(tensors: dict[str, Tensor], chance: random.Random) -> dict[str, Tensor]:
    """One to three tensors of another type or shape, without values, renamed, or removed."""
    changed = dict(tensors)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(sorted(changed))
        tensor = changed[name]
        kind = chance.randrange(8)
        if kind == 0:
            del changed[name]
            if not changed:
                return tensors
        elif kind == 1:
            changed[chance.choice(("x", f"{name}.x", name.rpartition(".")[0] or "y"))] = changed.pop(name)
        elif kind == 2:
            types = (torch.int8, torch.bool, torch.float16, torch.float64, torch.complex64, torch.bfloat16, torch.int64)
            changed[name] = tensor.to(chance.choice(types))
        elif kind == 3:
            changed[name] = tensor.reshape(-1)
        elif kind == 4:
            changed[name] = tensor.new_zeros(chance.choice(((), (0,), (1,), (3, 2), (1, 1, 1, 1, 1, 1))))
        elif kind == 5:
            changed[name] = tensor.new_zeros([2 * size for size in tensor.shape]) if tensor.numel() < 10**5 else tensor
        elif kind == 6:
            changed[name] = -tensor if tensor.is_floating_point() else tensor
        else:
            changed[name] = tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor
    return {key: value.contiguous().clone() for key, value in changed.items()}


def of_safetensors(path: Path, content: bytes, chance: random.Random) -> None:
    """Writes what `content`, a file of `files.write`, becomes: with hashes that are right, or any bytes."""
    path.write_bytes(content)
    if chance.random() < 0.25:
        path.write_bytes(of_bytes(content, chance))
        return
    tensors, document = files.read(path)
    plain = document.pop("plain", None)
    if chance.random() < 0.5:
        tensors = of_tensors(tensors, chance)
    else:
        document = of_data(document, chance)
    document = document if isinstance(document, dict) else {"step": document}
    path.unlink()  # a new file: the old one may be mapped
    files.write(path, tensors, document, plain)
