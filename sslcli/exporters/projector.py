"""The exporter `projector`: backbone and projector as one program (`.pt2`) that torch runs without their classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslcli.contracts.export import BackboneCard, Trained
from sslcli.runs.projector import load_projector

from .network import sample_images
from .torch_export import TorchExporter


class ProjectedNetwork(nn.Module):
    """Images (N, C, H, W) → features (N, D), and the projector's output for them (N, E)."""

    def __init__(self, network: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.network, self.projector = network, projector
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.network(images)
        return features, self.projector(features)


class ProjectorExporter(TorchExporter):
    """Backbone and projector in one program of torch.export.
    Writes images → (features, embeddings), backbone and projector in one program of torch.export.

    The embeddings are the projector's output, before any normalization in the loss. A program holds any projector
    whatever its layers, and is loaded without the method's code. Needs a run or a checkpoint, since backbone files have
    no projector.
    """

    def network(self, trained: Trained) -> nn.Module:
        """Returns both in one; UserError if there is no projector or its method is missing."""
        projector = load_projector(trained)
        return ProjectedNetwork(super().network(trained), projector)

    def output_text(self, network: nn.Module, card: BackboneCard) -> str:
        with torch.no_grad():
            dim = network(sample_images(card, 2))[1].shape[1]
        return f"features, embeddings = model(images): float32 (N, {card.feature_dim}) and (N, {dim})"
