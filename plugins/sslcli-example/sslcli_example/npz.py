"""Weights as NumPy arrays in one `.npz` file, for programs without torch (JAX, NumPy)."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Literal

import numpy as np

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.contracts.options import Options

#: Name of the array that holds the card as JSON text.
CARD = "__card__"


class NpzOptions(Options):
    """Options of npz."""

    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored weights."""


class NpzExporter(Exporter):
    """Writes the weights as NumPy arrays, and the card (normalization, image size, …) as JSON in the same file."""

    Options = NpzOptions
    options: NpzOptions
    suffix = ".npz"

    def export(self, trained: Trained, path: Path) -> Exported:
        state, _ = trained.backbone.export_state()
        arrays = {name: tensor.detach().cpu() for name, tensor in state.items()}
        stored = {
            name: tensor.float().numpy().astype(self.options.dtype) if tensor.is_floating_point() else tensor.numpy()
            for name, tensor in arrays.items()
        }
        stored[CARD] = np.array(json.dumps(dataclasses.asdict(trained.card)))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **stored)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        lines = [
            "import json",
            "import numpy as np",
            f"arrays = dict(np.load({str(path.absolute())!r}))",
            f"card = json.loads(str(arrays.pop({CARD!r})))",
        ]
        return Exported(path, "\n".join(lines))
