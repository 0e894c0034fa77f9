"""Files of a table's rows, written block by block: `.npy`, and safetensors.

The number of rows is known only at the end (unreadable images are left out), so both kinds begin with a header of a
fixed size, padded with spaces, which is filled in last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import BinaryIO

from torch import Tensor

_ALIGNMENT = 8
_NPY_HEADER = 128
_MANY = 10**15


class Rows:
    """Writes rows (n, D) float32 behind an empty header.

    Args:
        file: open for writing, at its beginning.
        dim: D.
        reserved: bytes of the header.
    """

    def __init__(self, file: BinaryIO, dim: int, reserved: int) -> None:
        self.file, self.dim, self.reserved, self.rows = file, dim, reserved, 0
        file.write(bytes(reserved))

    def add(self, block: Tensor) -> None:
        """Appends rows (n, D) float32 on the CPU."""
        self.file.write(block.contiguous().numpy().data)
        self.rows += len(block)

    def write_header(self, start: bytes, content: str, end: bytes = b"") -> None:
        """Writes the header: `start`, the content padded with spaces, and `end`."""
        self.file.seek(0)
        self.file.write(start + content.encode().ljust(self.reserved - len(start) - len(end)) + end)


class SafetensorsRows(Rows):
    """Writes the tensor `features` (n, D) float32 row by row, and smaller tensors behind it.

    Args:
        file: open for writing, at its beginning.
        dim: D.
        metadata: of the header.
        others: names of the tensors to come, which the size of the header depends on.
    """

    def __init__(self, file: BinaryIO, dim: int, metadata: dict[str, str], others: tuple[str, ...]) -> None:
        self.content: dict[str, object] = {"__metadata__": metadata}
        widest = {name: _entry("F32", (_MANY, _MANY), _MANY, _MANY) for name in ("features", *others)}
        length = -(-len(json.dumps(self.content | widest).encode()) // _ALIGNMENT) * _ALIGNMENT
        super().__init__(file, dim, 8 + length)

    def add_section(self, name: str, kind: str, shape: tuple[int, ...], content: Iterable[bytes]) -> None:
        """Writes a tensor behind the rows; `kind` is its type in safetensors (`I64`, `U8`). One of bytes (`U8`) is
        padded with zeros so that the next one is aligned."""
        start = self.file.tell() - self.reserved
        end = start + sum(self.file.write(part) for part in content)
        if kind == "U8":
            end += self.file.write(bytes(-end % _ALIGNMENT))
            shape = (end - start,)
        self.content[name] = _entry(kind, shape, start, end)

    def finish(self) -> None:
        """Writes the header."""
        self.content["features"] = _entry("F32", (self.rows, self.dim), 0, self.rows * self.dim * 4)
        self.write_header((self.reserved - 8).to_bytes(8, "little"), json.dumps(self.content))


def _entry(kind: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, object]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}


class NumpyRows(Rows):
    """Writes one array (n, D) float32 as `.npy` (version 1.0), row by row."""

    def __init__(self, file: BinaryIO, dim: int) -> None:
        super().__init__(file, dim, _NPY_HEADER)

    def finish(self) -> None:
        """Writes the header."""
        about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self.rows}, {self.dim}), }}"
        self.write_header(b"\x93NUMPY\x01\x00" + (_NPY_HEADER - 10).to_bytes(2, "little"), about, b"\n")
