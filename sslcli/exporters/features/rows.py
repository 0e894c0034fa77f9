"""Files of a table's rows, written block by block: `.npy`, and safetensors whose header is written last.

How many rows there are is known at the end only (unreadable images are left out), so that both kinds begin with a
header of a fixed size, padded with spaces, which is filled in when everything else is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from torch import Tensor

_ALIGNMENT = 8
_NPY_HEADER = 128
_MANY = 10**15


@dataclass
class Section:
    """One tensor of a safetensors file: `kind` is its type there (`F32`, `I64`, `U8`)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    size: int


class SafetensorsRows:
    """Writes the tensor `features` (n, D) float32 row by row, and smaller tensors behind it.

    Args:
        file: open for writing, at its beginning.
        dim: D.
        metadata: of the header.
        others: names of the tensors to come, for the room that the header takes.
    """

    def __init__(self, file: BinaryIO, dim: int, metadata: dict[str, str], others: tuple[str, ...]) -> None:
        self.file, self.dim, self.metadata = file, dim, metadata
        self.rows = 0
        self.sections: list[Section] = []
        widest = [Section(name, "F32", (_MANY, _MANY), _MANY) for name in ("features", *others)]
        self.length = -(-len(_safetensors_header(widest, metadata)) // _ALIGNMENT) * _ALIGNMENT
        file.write(b"\0" * (8 + self.length))

    def add(self, block: Tensor) -> None:
        """Appends rows (n, D) float32 on the CPU."""
        self.file.write(block.contiguous().numpy().data)
        self.rows += len(block)

    def add_section(self, name: str, kind: str, shape: tuple[int, ...], content: Iterable[bytes]) -> None:
        """Writes a tensor behind the rows. One of bytes (`U8`) is filled up with zeros, to where the next one may
        begin."""
        size = sum(self.file.write(part) for part in content)
        if kind == "U8":
            size += self.file.write(b"\0" * (-(self.rows * self.dim * 4 + size) % _ALIGNMENT))
            shape = (size,)
        self.sections.append(Section(name, kind, shape, size))

    def finish(self) -> None:
        """Writes the header."""
        rows = Section("features", "F32", (self.rows, self.dim), self.rows * self.dim * 4)
        header = _safetensors_header([rows, *self.sections], self.metadata)
        self.file.seek(0)
        self.file.write(self.length.to_bytes(8, "little") + header.ljust(self.length))


def _safetensors_header(sections: list[Section], metadata: dict[str, str]) -> bytes:
    content: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for each in sections:
        end = start + each.size
        content[each.name] = {"dtype": each.kind, "shape": list(each.shape), "data_offsets": [start, end]}
        start = end
    return json.dumps(content, separators=(",", ":")).encode()


class NumpyRows:
    """Writes one array (n, D) float32 as `.npy` (version 1.0), row by row.

    Args:
        file: open for writing, at its beginning.
        dim: D.
    """

    def __init__(self, file: BinaryIO, dim: int) -> None:
        self.file, self.dim, self.rows = file, dim, 0
        file.write(b"\0" * _NPY_HEADER)

    def add(self, block: Tensor) -> None:
        """Appends rows (n, D) float32 on the CPU."""
        self.file.write(block.contiguous().numpy().data)
        self.rows += len(block)

    def finish(self) -> None:
        """Writes the header."""
        about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self.rows}, {self.dim}), }}"
        length = _NPY_HEADER - 10
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + about.ljust(length - 1).encode() + b"\n")
