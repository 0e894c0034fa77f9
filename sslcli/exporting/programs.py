"""The exporters `torch-export` and `projector`: networks as programs (`.pt2`) that torch runs without their classes.

The format: https://docs.pytorch.org/docs/stable/export.html
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from ..contracts.errors import UserError
from ..contracts.export import BackboneCard, Exported, Exporter, Trained
from ..runs.backbone_file import describe
from ..runs.projector import load_projector
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
        network = Network(trained, normalise=self.options.normalise)
        path = write_program(network, trained, path, normalise=self.options.normalise)
        card = trained.card
        lines = [
            "import torch",
            f"model = torch.export.load({str(path.absolute())!r}).module()",
            input_text(card, normalise=self.options.normalise),
            f"# features = model(images): float32 (N, {card.feature_dim})",
        ]
        return Exported(path, "\n".join(lines))


class ProjectedNetwork(nn.Module):
    """Images (N, C, H, W) → features (N, D), and what the projector makes of them (N, E)."""

    def __init__(self, network: Network, projector: nn.Module) -> None:
        super().__init__()
        self.network, self.projector = network, projector
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.network(images)
        return features, self.projector(features)


class ProjectorExporter(Exporter):
    """Writes images → (features, embeddings), backbone and projector in one program of torch.export.

    The embeddings are what the projector returns, before any normalisation that the loss does. A program, because it
    holds any projector whatever its layers, and is loaded without the method's code.
    """

    Options = NetworkOptions
    options: NetworkOptions
    suffix = SUFFIX

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` whole or not at all; needs a run or a checkpoint, since backbone files have no projector.

        Raises:
            UserError: there is no projector, its method is missing, torch cannot trace it, or the file cannot be
                written.
            SslError: the written program gives other numbers.
        """
        projector = load_projector(trained)
        whole = ProjectedNetwork(Network(trained, normalise=self.options.normalise), projector)
        path = write_program(whole, trained, path, normalise=self.options.normalise)
        card = trained.card
        with torch.no_grad():
            dim = whole(sample_images(card, 2))[1].shape[1]
        lines = [
            "import torch",
            f"model = torch.export.load({str(path.absolute())!r}).module()",
            input_text(card, normalise=self.options.normalise),
            f"# features, embeddings = model(images): float32 (N, {card.feature_dim}) and (N, {dim})",
        ]
        return Exported(path, "\n".join(lines))


def write_program(network: nn.Module, trained: Trained, path: Path, *, normalise: bool) -> Path:
    """Traces a network, writes it, and holds what is read back to the network itself; returns the path.

    Raises:
        UserError: the name does not end in .pt2, torch cannot trace it, or the file cannot be written.
        SslError: the written program gives other numbers.
    """
    path = path.expanduser()
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: torch.export.load wants a name that ends in {SUFFIX}")
    program = trace(network, trained.card)
    about = describe(trained.card, trained.plugin) | {"normalise": str(normalise).lower()}
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:
            torch.export.save(program, file, extra_files=about)
        loaded = torch.export.load(io.BytesIO(temporary.read_bytes())).module()
        _check(path, loaded, network, trained.card)
    return path


def _check(path: Path, loaded: nn.Module, network: nn.Module, card: BackboneCard) -> None:
    for count in TRIED_WITH:
        images = sample_images(card, count)
        with torch.no_grad():
            found, wanted = loaded(images), network(images)
        pairs = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
        for one, other in pairs:
            check_same(path, one, other)
