"""The exporter `torch-export`: a network as a program (`.pt2`) that torch runs without its classes.

The format: https://docs.pytorch.org/docs/stable/export.html
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Exported, Exporter, Trained
from sslcli.runs.backbone_file import describe

from .network import TRIED_WITH, Network, NetworkOptions, check_same, input_text, sample_images, trace, whole_file

SUFFIX = ".pt2"


class TorchExporter(Exporter):
    """Writes images → features as a program of torch.export, for any batch size: torch alone loads it."""

    Options = NetworkOptions
    options: NetworkOptions
    suffix = SUFFIX

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` whole or not at all, and only if what is loaded from it gives torch's features.

        Raises:
            UserError: torch cannot trace the backbone, or the file cannot be written.
            SslError: the written program gives other features.
        """
        network = Network(trained, normalize=self.options.normalize)
        path = write_program(network, trained, path, normalize=self.options.normalize)
        card = trained.card
        lines = [
            "import torch",
            f"model = torch.export.load({str(path.absolute())!r}).module()",
            input_text(card, normalize=self.options.normalize),
            f"# features = model(images): float32 (N, {card.feature_dim})",
        ]
        return Exported(path, "\n".join(lines))


def write_program(network: nn.Module, trained: Trained, path: Path, *, normalize: bool) -> Path:
    """Traces a network, writes it, and holds what is read back to the network itself; returns the path.

    Raises:
        UserError: the name does not end in .pt2, torch cannot trace it, or the file cannot be written.
        SslError: the written program gives other numbers.
    """
    path = path.expanduser()
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: torch.export.load wants a name that ends in {SUFFIX}")
    program = trace(network, trained.card)
    about = describe(trained.card, trained.plugin) | {"normalize": str(normalize).lower()}
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:
            torch.export.save(program, file, extra_files=about)
        loaded = torch.export.load(io.BytesIO(temporary.read_bytes())).module()
        check_program(path, loaded, network, trained.card)
    return path


def check_program(path: Path, loaded: nn.Module, network: nn.Module, card: BackboneCard) -> None:
    for count in TRIED_WITH:
        images = sample_images(card, count)
        with torch.no_grad():
            found, wanted = loaded(images), network(images)
        pairs = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
        for one, other in pairs:
            check_same(path, one, other)
