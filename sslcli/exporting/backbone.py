"""The exporter `backbone`: weights in a safetensors file that torchvision's or sslcli's users load in a few lines."""

from __future__ import annotations

from pathlib import Path

from ..contracts.export import Exported, Exporter, Trained
from ..runs.backbone_file import save_backbone


class BackboneExporter(Exporter):
    """Writes the backbone alone, under the names that other tools know, with its card in the header."""

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` whole or not at all; raises UserError where it cannot be written."""
        path = path.expanduser()
        save_backbone(path, trained.backbone, trained.card)
        # Absolute, because the lines are pasted in another directory than the one the command ran in.
        name = repr(str(path.absolute()))
        lines = trained.backbone.export_state()[1].strip("\n")
        if lines:
            how = f"from safetensors.torch import load_file\nstate = load_file({name})\n{lines}"
        else:
            how = f"import sslcli\nmodel = sslcli.load_backbone({name})"
        return Exported(path, how)
