"""The exporter `backbone`: weights in a safetensors file that torchvision, timm or sslcli load in a few lines."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Literal

from sslcli.backbones.residual import TORCHVISION_WIDTH
from sslcli.backbones.resnet import RESNETS, ResNet
from sslcli.backbones.vit import ViT
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.contracts.options import Options
from sslcli.runs.backbone_file import save_backbone
from sslcli.storage import expanded


class BackboneExportOptions(Options):
    """Options of the exporter `backbone`."""

    format: Literal["auto", "torchvision", "timm", "sslcli"] = "auto"
    """Which tool's network the file is for: it decides the weights' names and the printed lines; `auto`: the first of
    torchvision, timm and sslcli that has the network. sslcli loads each of them."""


class BackboneExporter(Exporter):
    """The weights, as a safetensors file that torchvision, timm or sslcli load.
    Writes the backbone alone, with other tools' names for the weights, and in the header what is needed to use it:
    normalization, image size, method, dataset, step, and the package of the architecture."""

    Options = BackboneExportOptions
    options: BackboneExportOptions

    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` atomically.

        Raises:
            UserError: the tool asked for has no such network, or the file cannot be written.
        """
        path = expanded(path)
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


def loading_lines(backbone: Backbone) -> dict[str, str]:
    """Returns tool → lines that build `model` and load `state` into it, for each tool that has this network.

    The first one is the tool that the backbone itself names in `export_state`, if it names any. All of them use the
    names that `export_state` gives the weights.
    """
    own, timm = backbone.export_state()[1].strip("\n"), _timm_lines(backbone)
    lines = {_tool(own): own} if own else {}
    if timm:
        lines.setdefault("timm", "\n".join([*timm, "model.load_state_dict(state, strict=True)"]))
    return lines


def _timm_lines(backbone: Backbone) -> list[str]:
    """Returns the lines for timm, whose ViTs and ResNets have the same names; none where it has no such network."""
    channels = backbone.spec.channels
    if isinstance(backbone, ViT):
        vit = backbone.options
        arguments = {
            "img_size": backbone.side * vit.patch_size, "patch_size": vit.patch_size, "in_chans": channels,
            "num_classes": 0, "embed_dim": backbone.dim, "depth": vit.depth, "num_heads": vit.heads or backbone.heads,
        }  # fmt: skip
        shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
        if vit.pool == "mean":
            shown += ', global_pool="avg", fc_norm=False'  # the norm is before the mean
        return ["import timm", f"model = timm.models.VisionTransformer({shown})"]
    if not isinstance(backbone, ResNet) or type(backbone) not in RESNETS.values():
        return []
    if backbone.options.width != TORCHVISION_WIDTH:
        return []
    lines = ["import timm", f"model = timm.create_model({backbone.name!r}, num_classes=0, in_chans={channels})"]
    if backbone.options.stem == "small":
        lines = [
            "import torch",
            *lines,
            f"model.conv1 = torch.nn.Conv2d({channels}, 64, kernel_size=3, stride=1, padding=1, bias=False)",
            "model.maxpool = torch.nn.Identity()",
        ]
    return lines


def _tool(lines: str) -> str:
    """Returns the tool that lines are for: the package that they import besides torch and Python's own."""
    found: list[str] = []
    for node in ast.walk(ast.parse(lines)):
        if isinstance(node, ast.Import):
            found += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module.partition(".")[0])
    return next((name for name in found if name not in ("torch", "collections")), "torch")
