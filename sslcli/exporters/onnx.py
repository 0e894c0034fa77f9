"""The exporter `onnx`: the network as an ONNX model for any batch size, held to torch by onnxruntime.

The format: https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

import importlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.runs.backbone_file import describe

from .network import (
    TRIED_WITH,
    Network,
    NetworkOptions,
    check_same,
    input_text,
    one_line,
    quiet,
    sample_images,
    trace,
    whole_file,
)

log = logging.getLogger(__name__)

INPUT, OUTPUT = "images", "features"
#: What a protobuf message can hold.
LARGEST = 2**31 - 1
INSTALL = "pip install 'sslcli[onnx]'"


class ONNXOptions(NetworkOptions):
    """Options of the exporter `onnx`."""

    opset: int | None = Field(default=None, ge=18)
    """Version of ONNX's operators; null: the one that the installed torch recommends."""


class ONNXExporter(Exporter):
    """Writes images → features as an ONNX model, checked by onnxruntime where it is installed."""

    Options = ONNXOptions
    options: ONNXOptions
    suffix = ".onnx"

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` whole or not at all.

        Raises:
            UserError: the packages are missing, the backbone cannot be expressed, or the file cannot be written.
            SslError: onnxruntime computes other features than torch.
        """
        path = path.expanduser()
        onnx = _needed("onnx")
        card = trained.card
        network = Network(trained, normalize=self.options.normalize)
        model = onnx.load_model_from_string(self._convert(network, trained))
        about = describe(card, trained.plugin) | {"normalize": str(self.options.normalize).lower()}
        del about["format"]
        onnx.helper.set_model_props(model, about)
        if model.ByteSize() > LARGEST:
            raise UserError(f"{path}: the model is larger than the 2 GiB that one ONNX file holds; export torch-export")
        content: bytes = model.SerializeToString()
        self._check(path, content, network, trained)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        lines = [
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({str(path.absolute())!r}, providers=['CPUExecutionProvider'])",
            "model = lambda images: session.run(['features'], {'images': images})[0]",
            input_text(card, normalize=self.options.normalize),
            f"# features = model(images): NumPy float32 (N, {card.feature_dim})",
        ]
        return Exported(path, "\n".join(lines))

    def _convert(self, network: Network, trained: Trained) -> bytes:
        """Returns the serialized model: by torch's newer exporter or, where that fails, by the older one."""
        reasons = []
        for convert in (self._by_program, self._by_script):
            try:
                with quiet():
                    return convert(network, trained)
            except Exception as error:  # the exporters raise what they like
                reasons.append(one_line(error))
        if _missing("onnxscript"):
            _needed("onnxscript")
        name = trained.card.backbone.get("name")
        raise UserError(f"the backbone {name!r} cannot be exported to ONNX ({reasons[0]}); try torch-export")

    def _by_program(self, network: Network, trained: Trained) -> bytes:
        _needed("onnxscript")
        program: Any = torch.onnx.export(
            trace(network, trained.card), (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True,
            opset_version=self.options.opset, external_data=False, verbose=False,
        )  # fmt: skip
        content: bytes = program.model_proto.SerializeToString()
        return content

    def _by_script(self, network: Network, trained: Trained) -> bytes:
        buffer: Any = io.BytesIO()  # which torch takes and its types deny
        torch.onnx.export(
            network, (sample_images(trained.card, 2),), buffer, input_names=[INPUT], output_names=[OUTPUT],
            dynamo=False, opset_version=self.options.opset, dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )  # fmt: skip
        return buffer.getvalue()

    def _check(self, path: Path, content: bytes, network: Network, trained: Trained) -> None:
        if _missing("onnxruntime"):
            log.info(f"{path.name}: not checked, onnxruntime is not installed: {INSTALL}")
            return
        session = importlib.import_module("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
        differences = []
        for count in TRIED_WITH:
            images = sample_images(trained.card, count)
            with torch.no_grad():
                wanted = network(images)
            found = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
            differences.append(check_same(path, found, wanted))
        log.info(f"{path.name}: checked, onnxruntime's features differ from torch's by {max(differences):.1g}")


def _missing(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return True
    return False


def _needed(package: str) -> Any:
    """Imports a package of the extra; UserError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"exporting to ONNX needs the package {package}: {INSTALL}") from None
