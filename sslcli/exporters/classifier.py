"""The exporter `classifier`: what `ssl eval` trained (a linear probe, a fine-tuned network), for use on images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sslcli.augmentations.resize import ResizeOptions
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.evaluation.classifier import save_classifier
from sslcli.storage import expanded

from .backbone import loading_lines
from .onnx import ONNXExporter, ONNXOptions
from .torch_export import TorchExporter

#: The format of each suffix.
FORMATS = {".safetensors": "safetensors", ".onnx": "onnx", ".pt2": "torch-export"}


class ClassifierExportOptions(ONNXOptions):
    """Options of the exporter `classifier`."""

    format: Literal["auto", "safetensors", "onnx", "torch-export"] = "auto"
    """safetensors: weights, which the printed lines load; onnx, torch-export: a program that needs no network's code;
    `auto`: by the output's suffix (.safetensors, .onnx, .pt2), which is .safetensors by default."""
    normalize: bool = Field(default=True)
    """A program accepts images in [0, 1] and normalizes them; false: the images must be normalized already, with the
    mean and std that the file names. Weights (safetensors) never normalize."""


class ClassifierExporter(Exporter):
    """A classifier that `ssl eval` trained, with its network, as safetensors, ONNX or a program of torch.export.

    The file has the names of the classes and how images are prepared. Takes a result (`RUN/eval/linear.json`), or a
    run, whose newest result is taken.
    """

    Options = ClassifierExportOptions
    options: ClassifierExportOptions
    needs_classifier = True

    def default_suffix(self) -> str:
        return next((suffix for suffix, kind in FORMATS.items() if kind == self.options.format), self.suffix)

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` atomically.

        Raises:
            UserError: the network cannot be expressed in this format, an option belongs to another one, a package is
                missing, or the file cannot be written.
            SslError: the written program gives other scores.
        """
        path = expanded(path)
        kind = FORMATS.get(path.suffix) if self.options.format == "auto" else self.options.format
        if kind is None:
            raise UserError(f"{path}: should end in {', '.join(FORMATS)}, or choose a format: format=onnx")
        if self.options.opset is not None and kind != "onnx":
            raise UserError(f"opset: is an option of format=onnx, and this is {kind}")
        if not self.options.normalize and kind == "safetensors":
            raise UserError("normalize: is an option of format=onnx and torch-export; weights never normalize")
        assert trained.classifier is not None, "load_classifier gives one"
        name = repr(str(path.absolute()))
        if kind == "onnx":
            ONNXExporter(self.options).export(trained, path)
            lines = [
                "import json",
                "import numpy",
                "import onnxruntime",
                *IMPORT_PIL,
                f"session = onnxruntime.InferenceSession({name}, providers=['CPUExecutionProvider'])",
                "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])",
                *preparation(trained, normalized=not self.options.normalize),
                "scores = session.run(['scores'], {'images': images})[0]",
            ]
        elif kind == "torch-export":
            TorchExporter(self.options).export(trained, path)
            lines = [
                "import json",
                "import numpy",
                "import torch",
                *IMPORT_PIL,
                "about = {'classes': ''}",
                f"classifier = torch.export.load({name}, extra_files=about).module()",
                "classes = json.loads(about['classes'])",
                *preparation(trained, normalized=not self.options.normalize),
                "scores = classifier(torch.from_numpy(images))",
            ]
        else:
            save_classifier(path, trained)
            lines = self._weight_lines(trained, name)
        return Exported(path, "\n".join([*lines, "print(classes[int(scores[0].argmax())])"]))

    def _weight_lines(self, trained: Trained, name: str) -> list[str]:
        """Lines that load the weights into torchvision's network, or where it has none like it into our own."""
        torchvision = loading_lines(trained.backbone).get("torchvision")
        if torchvision is None:
            return [
                "import numpy",
                "import sslcli",
                "import torch",
                *IMPORT_PIL,
                f"classifier = sslcli.load_classifier({name})",
                "classes = classifier.classes",
                *preparation(trained, normalized=False),
                "with torch.no_grad():",
                "    scores = classifier(torch.from_numpy(images))",
            ]
        return [
            "import json",
            "import numpy",
            *IMPORT_PIL,
            "from safetensors import safe_open",
            f"with safe_open({name}, 'pt') as file:",
            "    classes = json.loads(file.metadata()['classes'])",
            "    state = {key: file.get_tensor(key) for key in file.keys()}",
            "weight, bias = state.pop('classifier.weight'), state.pop('classifier.bias')",
            torchvision,
            "model.eval()",
            *preparation(trained, normalized=True),
            "with torch.no_grad():",
            "    scores = model(torch.from_numpy(images)) @ weight.T + bias",
        ]


IMPORT_PIL = ["from PIL import Image, ImageOps"]


def preparation(trained: Trained, *, normalized: bool) -> list[str]:
    """Returns lines that make `images`, a NumPy array (1, C, S, S), of an image as the evaluation did.

    Args:
        trained: says for what.
        normalized: minus the mean, over the standard deviation; otherwise in [0, 1].
    """
    card, classifier = trained.card, trained.classifier
    assert classifier is not None
    side = card.image_size
    size, mode = (side, side), {1: "L", 3: "RGB"}.get(card.channels)
    short = round(side * ResizeOptions().ratio)  # the operation `resize`, in Pillow's words
    lines = [
        f"image = Image.new({mode!r}, {size})  # your own: Image.open('photograph.jpg')",
        "image = ImageOps.exif_transpose(image).convert('RGBA')",
        f"image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert({mode!r})",
        f"if image.size != {size}:",
        f"    width, height = ({short} * length // min(image.size) for length in image.size)",
        f"    image = image.resize((width, height), Image.Resampling.{classifier.interpolation.upper()})",
        f"    left, top = round((width - {side}) / 2), round((height - {side}) / 2)",
        f"    image = image.crop((left, top, left + {side}, top + {side}))",
        f"images = numpy.asarray(image, numpy.float32).reshape({side}, {side}, -1).transpose(2, 0, 1)[None] / 255",
    ]
    if mode is None:
        lines = [f"images = numpy.zeros((1, {card.channels}, {side}, {side}), numpy.float32)  # your own, in [0, 1]"]
    if normalized:
        mean, std = (f"numpy.array({list(values)}, numpy.float32)" for values in (card.mean, card.std))
        lines.append(f"images = (images - {mean}.reshape(1, -1, 1, 1)) / {std}.reshape(1, -1, 1, 1)")
    return lines
