"""The exporter `backbone`: weights in a safetensors file that torchvision's, timm's or sslcli's users load in a few
lines."""

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
    """Whose network the file is to be loaded into, which the weights' names and the printed lines follow; `auto`: the
    first of torchvision, timm and sslcli that has it. sslcli loads each of them."""


class BackboneExporter(Exporter):
    """Writes the backbone alone, under the names that other tools know, with all that one needs to use it in the
    header: normalization, image size, method, data set, step, and the package that the architecture is from."""

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
            raise UserError(f"format: {tool} has no network like {name!r} with these options; there are: {others}")
        save_backbone(path, trained.backbone, trained.card, trained.plugin, key_names=tool)
        # Absolute, because the lines are pasted in another directory than the one the command ran in.
        name = repr(str(path.absolute()))
        if tool == "sslcli":
            return Exported(path, f"import sslcli\nmodel = sslcli.load_backbone({name})")
        return Exported(path, f"from safetensors.torch import load_file\nstate = load_file({name})\n{known[tool]}")
