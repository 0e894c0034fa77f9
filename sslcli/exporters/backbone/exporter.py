"""The exporter `backbone`: weights in a safetensors file that torchvision, timm or sslcli load in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.contracts.options import Options
from sslcli.runs.backbone_file import save_backbone

from .tools import loading_lines


class BackboneExportOptions(Options):
    """Options of the exporter `backbone`."""

    format: Literal["auto", "torchvision", "timm", "sslcli"] = "auto"
    """Which tool's network the file is for: it decides the weights' names and the printed lines; `auto`: the first of
    torchvision, timm and sslcli that has the network. sslcli loads each of them."""


class BackboneExporter(Exporter):
    """Writes the backbone alone, with the weights' names of other tools, and in the header all that its use takes:
    normalization, image size, method, data set, step, and the package of the architecture."""

    Options = BackboneExportOptions
    options: BackboneExportOptions

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` whole or not at all.

        Raises:
            UserError: the tool asked for has no such network, or the file cannot be written.
        """
        path = path.expanduser()
        known = loading_lines(trained.backbone)
        tool: str = self.options.format
        if tool == "auto":
            tool = next(iter(known), "sslcli")
        if tool != "sslcli" and tool not in known:
            name, others = trained.card.backbone.get("name"), ", ".join([*known, "sslcli"])
            raise UserError(f"format: {tool} has no network like {name!r} with these options; available: {others}")
        save_backbone(path, trained.backbone, trained.card, trained.plugin, key_names=tool)
        # Absolute, because the lines may be pasted in another directory.
        name = repr(str(path.absolute()))
        if tool == "sslcli":
            return Exported(path, f"import sslcli\nmodel = sslcli.load_backbone({name})")
        return Exported(path, f"from safetensors.torch import load_file\nstate = load_file({name})\n{known[tool]}")
