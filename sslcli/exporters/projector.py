"""The exporter `projector`: backbone and projector as one program (`.pt2`) that torch runs without their classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.runs.projector import load_projector

from .network import Network, NetworkOptions, input_text, sample_images
from .torch_export import SUFFIX, write_program


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

    The embeddings are what the projector returns, before any normalization that the loss does. A program, because it
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
        whole = ProjectedNetwork(Network(trained, normalize=self.options.normalize), projector)
        path = write_program(whole, trained, path, normalize=self.options.normalize)
        card = trained.card
        with torch.no_grad():
            dim = whole(sample_images(card, 2))[1].shape[1]
        lines = [
            "import torch",
            f"model = torch.export.load({str(path.absolute())!r}).module()",
            input_text(card, normalize=self.options.normalize),
            f"# features, embeddings = model(images): float32 (N, {card.feature_dim}) and (N, {dim})",
        ]
        return Exported(path, "\n".join(lines))
