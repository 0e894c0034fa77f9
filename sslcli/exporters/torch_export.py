"""The exporter `torch-export`: a network as a program (`.pt2`) that torch runs without its classes.

The format: https://docs.pytorch.org/docs/stable/export.html
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Trained

from .network import NetworkExporter, trace


class TorchExporter(NetworkExporter):
    """The network as a program of torch.export.
    Writes images → features as a program of torch.export, for any batch size: torch alone loads it."""

    suffix = ".pt2"

    def write(
        self, network: nn.Module, trained: Trained, about: dict[str, str], path: Path, temporary: Path
    ) -> Callable[[Tensor], Any]:
        if path.suffix != self.suffix:
            raise UserError(f"{path}: torch.export.load needs a name that ends in {self.suffix}")
        program = trace(network, trained.card)
        # By way of memory: torch's own writer aborts the process when the disk is full.
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=about)
        temporary.write_bytes(buffer.getbuffer())
        # What is on the disk; from a buffer, because of the temporary file's suffix.
        loaded: Callable[[Tensor], Any] = torch.export.load(io.BytesIO(temporary.read_bytes())).module()
        return loaded

    def loading_lines(self, path: Path) -> list[str]:
        return ["import torch", f"model = torch.export.load({str(path.absolute())!r}).module()"]
