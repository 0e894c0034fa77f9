"""The exporter `features`: the embeddings of a dataset, with file names and labels, written as they are computed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import torch
from numpy.lib.format import write_array_header_1_0
from pydantic import Field
from torch import Tensor

from sslcli.config.document import Document
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.contracts.options import Options
from sslcli.data.subset import limited
from sslcli.distributed import order
from sslcli.evaluation.extraction import PrecisionName, feature_blocks
from sslcli.evaluation.parts import choose_data, stored_data
from sslcli.evaluation.sharing import opened_alike
from sslcli.evaluation.subject import FrozenSubject, describe_data
from sslcli.runs.backbone_file import describe
from sslcli.runs.files import header
from sslcli.storage import expanded

from .network import whole_file

log = logging.getLogger(__name__)

#: Names and labels written at a time, and images between two lines of progress.
BLOCK, PROGRESS = 4096, 100_000
#: Of a safetensors file: what its numbers are aligned to, and room for the entries of the tensors in its header, which
#: is written last, since the number of rows is known only then (unreadable images are left out).
ALIGNMENT, ENTRIES = 8, 1024


class FeaturesOptions(Options):
    """Options of the exporter `features`."""

    format: Literal["auto", "safetensors", "npy"] = "auto"
    """One safetensors file, or an array plus a JSON file with names and labels; `auto`: by the output's suffix."""
    data: dict[str, Any] | str = Field(default_factory=dict)
    """Which images: those that the run was trained on, unless `data.split`, `data.root` or, for another dataset,
    `data.name` say otherwise."""
    batch_size: int = Field(default=256, ge=1)
    """Number of images processed at once."""
    precision: PrecisionName = "fp32"
    """Precision of the network; the features are written as float32."""


class FeaturesExporter(Exporter):
    """The features of a dataset's images, as safetensors or npy.
    Writes features (N, D) of a dataset with names, labels and indices of the images, in the memory of one batch.

    Images that cannot be read are left out, together with their names and labels.
    """

    Options = FeaturesOptions
    options: FeaturesOptions
    shared = True

    def default_suffix(self) -> str:
        return ".npy" if self.options.format == "npy" else ".safetensors"

    def outputs(self, path: Path) -> list[Path]:
        return [path, path.with_suffix(".json")] if self._kind(path) == "npy" else [path]

    def _kind(self, path: Path) -> str:
        if self.options.format != "auto":
            return self.options.format
        if path.suffix not in (".npy", ".safetensors"):
            raise UserError(f"{path}: should end in .safetensors or .npy, or choose a format: format=safetensors")
        return path.suffix.removeprefix(".")

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` atomically.

        Raises:
            UserError: no such data, images with other channels, more than 1% that cannot be read, features that are
                not finite, or a file that cannot be written.
        """
        path = expanded(path)
        kind = self._kind(path)
        if kind == "npy" and path.suffix != ".npy":
            raise UserError(f"{path}: files of NumPy arrays end in .npy")
        dataset = open_images(trained, self.options.data)
        about = {
            "backbone": describe(trained.card, trained.plugin),
            "data": describe_data(dataset),
            "precision": self.options.precision,
            "file_sha256": trained.digest,
        }
        write = self._write_numpy if kind == "npy" else self._write_safetensors
        return write(trained, dataset, path, about)

    def _write_safetensors(self, trained: Trained, dataset: Dataset, path: Path, about: dict[str, Any]) -> Exported:
        plain = about["backbone"] | {"classes": json.dumps(dataset.info.classes)}
        content: dict[str, Any] = {"__metadata__": header({"kind": "features", **about, "plain": plain})}
        start = -(-(8 + len(json.dumps(content).encode()) + ENTRIES) // ALIGNMENT) * ALIGNMENT
        with whole_file(path) as temporary, temporary.open("wb") as file:
            file.write(bytes(start))
            index = self._stream(trained, dataset, file)
            shape = [len(index), trained.card.feature_dim]
            content["features"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, file.tell() - start]}
            names = (os.fsencode("\0".join(block)) + b"\0" for block in _names(dataset, index))
            content["names"] = _append(file, start, "U8", names)
            content["index"] = _append(file, start, "I64", [index.numpy().tobytes()])
            if dataset.labels is not None:
                content["labels"] = _append(file, start, "I64", [dataset.labels[index].numpy().tobytes()])
            file.seek(0)
            file.write((start - 8).to_bytes(8, "little") + json.dumps(content).encode().ljust(start - 8))
        lines = [
            "import os",
            "from safetensors.torch import load_file",
            f"file = load_file({str(path.absolute())!r})",
            f"features = file['features']  # float32 {tuple(shape)}",
            "names = os.fsdecode(file['names'].numpy().tobytes()).rstrip('\\0').split('\\0')",
        ]
        if dataset.labels is not None:
            lines.append("labels = file['labels']")
        return Exported(path, "\n".join(lines))

    def _write_numpy(self, trained: Trained, dataset: Dataset, path: Path, about: dict[str, Any]) -> Exported:
        beside, dim = path.with_suffix(".json"), trained.card.feature_dim
        with whole_file(path) as temporary, whole_file(beside) as sidecar:
            with temporary.open("wb") as file:
                content = {"descr": "<f4", "fortran_order": False, "shape": (0, dim)}
                write_array_header_1_0(file, content)  # NumPy leaves room for a larger number of rows
                index = self._stream(trained, dataset, file)
                file.seek(0)
                write_array_header_1_0(file, content | {"shape": (len(index), dim)})
            with sidecar.open("w", encoding="utf-8") as text:
                _write_sidecar(text, dataset, index, about)
        log.info(f"names and labels are in {beside}")
        lines = [
            "import json",
            "import numpy",
            f"features = numpy.load({str(path.absolute())!r}, mmap_mode='r')  # float32 {(len(index), dim)}",
            f"with open({str(beside.absolute())!r}) as file:",
            "    about = json.load(file)",
            "names, labels = about['names'], about['labels']",
        ]
        return Exported(path, "\n".join(lines))

    def _stream(self, trained: Trained, dataset: Dataset, file: BinaryIO) -> Tensor:
        """Computes and appends all features; returns the indices (n,) of the images that could be read."""
        name = dataset.info.name
        log.info(f"features of {len(dataset):,} images ({name}, {dataset.options.split})")
        kept, done = [torch.empty(0, dtype=torch.int64)], 0
        if shared := order("features"):
            opened_alike(lambda: [dataset])  # as `assist` does
        with closing(self._blocks(trained, dataset, shared=shared)) as blocks:
            for block, indices in blocks:
                block = block.cpu()
                if not bool(block.isfinite().all()):
                    raise UserError(
                        f"the backbone's features of {name} are not all finite; the run diverged, or "
                        f"{self.options.precision} is too coarse for it"
                    )
                file.write(block.contiguous().numpy().data)
                kept.append(indices)
                before, done = done, done + len(block)
                if done // PROGRESS > before // PROGRESS:
                    log.info(f"{done:,} of {len(dataset):,} images")
        if done < len(dataset):
            log.info(f"{len(dataset) - done:,} images cannot be read and are left out")
        return torch.cat(kept)

    def assist(self, trained: Trained) -> None:
        (dataset,) = opened_alike(lambda: [open_images(trained, self.options.data)])
        for _ in self._blocks(trained, dataset, shared=True):
            pass

    def _blocks(self, trained: Trained, dataset: Dataset, *, shared: bool) -> Generator[tuple[Tensor, Tensor]]:
        subject = FrozenSubject(trained, dataset, None, self.device)
        size, precision = self.options.batch_size, self.options.precision
        return feature_blocks(subject.backbone, dataset, subject, size, precision, shared=shared)


def open_images(trained: Trained, asked: dict[str, Any] | str) -> Dataset:
    """Opens the dataset that is named, or else the one that a backbone was trained on, with the changes asked for.

    Raises:
        UserError: no such dataset, invalid options, or no data there.
    """
    cls, options, _ = choose_data(stored_data(trained), Document({"data": asked}, {(): "command line"}))
    return limited(cls.open(options))


def _append(file: BinaryIO, start: int, kind: str, blocks: Iterable[bytes]) -> dict[str, Any]:
    """Appends a tensor to safetensors content that begins at `start`; returns its entry in the header. Zeros behind it,
    which only one of bytes (`U8`) needs and which count as its own, align what follows."""
    begin = file.tell()
    file.writelines(blocks)
    file.write(bytes(-file.tell() % ALIGNMENT))
    count = (file.tell() - begin) // {"U8": 1, "I64": 8}[kind]
    return {"dtype": kind, "shape": [count], "data_offsets": [begin - start, file.tell() - start]}


def _names(dataset: Dataset, index: Tensor) -> Iterator[list[str]]:
    for block in torch.split(index, BLOCK):
        yield [dataset.name_of(index) for index in block.tolist()]


def _write_sidecar(file: TextIO, dataset: Dataset, index: Tensor, about: dict[str, Any]) -> None:
    """Writes a JSON object whose long lists are never in memory as a whole."""
    file.write(json.dumps({**about, "classes": dataset.info.classes}).removesuffix("}"))
    _write_list(file, "index", (block.tolist() for block in torch.split(index, BLOCK)))
    _write_list(file, "names", _names(dataset, index))
    if dataset.labels is None:
        file.write(', "labels": null')
    else:
        _write_list(file, "labels", (dataset.labels[block].tolist() for block in torch.split(index, BLOCK)))
    file.write("}\n")


def _write_list(file: TextIO, key: str, blocks: Iterator[list[Any]]) -> None:
    file.write(f', "{key}": [')
    for number, block in enumerate(blocks):
        file.write((", " if number else "") + json.dumps(block)[1:-1])
    file.write("]")
