"""The exporter `onnx`: the network as an ONNX model for any batch size, checked against torch by onnxruntime.

The format: https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

import importlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Trained

from .network import NetworkExporter, NetworkOptions, one_line, output_of, quiet, sample_images, trace

log = logging.getLogger(__name__)

INPUT = "images"
#: What a protobuf message can hold.
LARGEST = 2**31 - 1
INSTALL = "pip install 'sslcli[onnx]'"


class ONNXOptions(NetworkOptions):
    """Options of the exporter `onnx`."""

    opset: int | None = Field(default=None, ge=18)
    """ONNX operator set (opset) version; null: the one that the installed torch recommends."""


class ONNXExporter(NetworkExporter):
    """The network as an ONNX model.
    Writes images → features as an ONNX model, checked by onnxruntime where it is installed."""

    Options = ONNXOptions
    options: ONNXOptions
    suffix = ".onnx"

    def write(
        self, network: nn.Module, trained: Trained, about: dict[str, str], path: Path, temporary: Path
    ) -> Callable[[Tensor], Any] | None:
        onnx = _needed("onnx")
        model = onnx.load_model_from_string(self._convert(network, trained))
        onnx.helper.set_model_props(model, {key: value for key, value in about.items() if key != "format"})
        if model.ByteSize() > LARGEST:
            raise UserError(f"{path}: the model is larger than the 2 GiB that one ONNX file holds; export torch-export")
        temporary.write_bytes(model.SerializeToString())
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError:
            log.info(f"{path.name}: not checked, onnxruntime is not installed: {INSTALL}")
            return None
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run([output_of(trained)], {INPUT: images.numpy()})[0])

    def loading_lines(self, path: Path) -> list[str]:
        return [
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({str(path.absolute())!r}, providers=['CPUExecutionProvider'])",
            "model = lambda images: session.run(['features'], {'images': images})[0]",
        ]

    def output_text(self, network: nn.Module, card: BackboneCard) -> str:
        return super().output_text(network, card).replace("float32", "NumPy float32")

    def _convert(self, network: nn.Module, trained: Trained) -> bytes:
        """Returns the serialized model: by torch's newer exporter or, where that fails, by the older one."""
        reasons = []
        for convert in (self._by_program, self._by_script):
            try:
                with quiet():
                    return convert(network, trained)
            except Exception as error:  # the exporters raise anything
                reasons.append(one_line(error))
        _needed("onnxscript")
        name = trained.card.backbone.get("name")
        raise UserError(f"the backbone {name!r} cannot be exported to ONNX ({reasons[0]}); try torch-export")

    def _by_program(self, network: nn.Module, trained: Trained) -> bytes:
        _needed("onnxscript")
        program: Any = torch.onnx.export(
            trace(network, trained.card), (), input_names=[INPUT], output_names=[output_of(trained)], dynamo=True,
            opset_version=self.options.opset, external_data=False, verbose=False,
        )  # fmt: skip
        content: bytes = program.model_proto.SerializeToString()
        return content

    def _by_script(self, network: nn.Module, trained: Trained) -> bytes:
        output = output_of(trained)
        buffer: Any = io.BytesIO()  # which torch takes, but its types don't say so
        torch.onnx.export(
            network, (sample_images(trained.card, 2),), buffer, input_names=[INPUT], output_names=[output],
            dynamo=False, opset_version=self.options.opset, dynamic_axes={INPUT: {0: "batch"}, output: {0: "batch"}},
        )  # fmt: skip
        return buffer.getvalue()


def _needed(package: str) -> Any:
    """Imports a package of the extra; UserError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"exporting to ONNX needs the package {package}: {INSTALL}") from None
