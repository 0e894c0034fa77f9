"""Which tools have a backbone's network, and the Python lines that load its weights there."""

from __future__ import annotations

import ast

from sslcli.backbones.resnet import RESNETS, TORCHVISION_WIDTH, ResNet
from sslcli.backbones.vit import ViT
from sslcli.contracts.backbone import Backbone

_STRICT = "model.load_state_dict(state, strict=True)"


def loading_lines(backbone: Backbone) -> dict[str, str]:
    """Returns tool → lines that build `model` and load `state` into it, for each tool that has this network.

    The first one is the tool that the backbone itself names in `export_state`, if it names any. All of them use the
    names that `export_state` gives the weights.
    """
    lines = {}
    own = backbone.export_state()[1].strip("\n")
    if own:
        lines[_tool(own)] = own
    timm = timm_lines(backbone)
    if timm is not None:
        lines.setdefault("timm", timm)
    return lines


def timm_lines(backbone: Backbone) -> str | None:
    """Returns the lines for timm, whose ViTs and ResNets have the same names; None where it has no such network."""
    if isinstance(backbone, ViT):
        return _vit_lines(backbone)
    if type(backbone) in RESNETS.values() and isinstance(backbone, ResNet):
        return _resnet_lines(backbone)
    return None


def _vit_lines(backbone: ViT) -> str:
    options = backbone.options
    arguments = {
        "img_size": backbone.side * options.patch_size, "patch_size": options.patch_size,
        "in_chans": backbone.spec.channels, "num_classes": 0, "embed_dim": backbone.dim, "depth": options.depth,
        "num_heads": options.heads or backbone.heads,
    }  # fmt: skip
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
    if options.pool == "mean":
        shown += ', global_pool="avg", fc_norm=False'  # the norm is before the mean
    return "\n".join(["import timm", f"model = timm.models.VisionTransformer({shown})", _STRICT])


def _resnet_lines(backbone: ResNet) -> str | None:
    options, channels = backbone.options, backbone.spec.channels
    if options.width != TORCHVISION_WIDTH:
        return None
    lines = ["import timm", f"model = timm.create_model({backbone.name!r}, num_classes=0, in_chans={channels})"]
    if options.stem == "small":
        lines = [
            "import torch",
            *lines,
            f"model.conv1 = torch.nn.Conv2d({channels}, 64, kernel_size=3, stride=1, padding=1, bias=False)",
            "model.maxpool = torch.nn.Identity()",
        ]
    return "\n".join([*lines, _STRICT])


def _tool(lines: str) -> str:
    """Returns the tool that lines are for: the package that they import besides torch and Python's own."""
    found: list[str] = []
    for node in ast.walk(ast.parse(lines)):
        if isinstance(node, ast.Import):
            found += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module.partition(".")[0])
    return next((name for name in found if name not in ("torch", "collections")), "torch")
