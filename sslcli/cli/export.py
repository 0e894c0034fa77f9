"""`ssl export`: writes a trained backbone for other tools."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from sslcli.contracts.errors import UserError
from sslcli.foreign import show
from sslcli.shell import plain_path

from . import completion
from .arguments import Device, Devices, PluginFiles, verbosity
from .evaluate import split_words, started_together

log = logging.getLogger(__name__)


def export(
    name: Annotated[
        str,
        typer.Argument(
            help="What to export: `ssl list exporters`; the options of one: `ssl list exporters NAME`.",
            metavar="EXPORTER",
            autocompletion=completion.plugins("exporters"),
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to export, by default the newest run in runs/: a run directory, checkpoint or backbone file. "
            "Also options of the exporter, such as format=timm.",
            metavar="RUN|KEY=VALUE",
            autocompletion=completion.exported,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write; by default in the run directory, or next to the file.", metavar="FILE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
    device: Device = "auto",
    devices: Devices = None,
    plugin: PluginFiles = None,
) -> int:
    """Write a trained backbone for other tools, and show how to load it.

    Example: ssl export backbone runs/quickstart-1a2b3c4d --output resnet18.safetensors
    """
    from sslcli.plugins import choose, load, register_file

    for path in plugin or []:
        register_file(path)
    choose("exporters", name)  # so that a typo is reported before torch is imported

    targets, overrides = split_words(words or [])
    if len(targets) > 1:
        raise UserError(f"{targets[1]}: should look like key=value; one run is exported at a time")

    from sslcli import distributed
    from sslcli.training.group import joined
    from sslcli.training.launch import launch

    shared = load("exporters", name).shared
    if devices is not None and devices > 1:
        if not shared:
            raise UserError(f"--devices: {name!r} is exported by one process; leave the option out")
        given = ["--output", plain_path(output)] if output is not None else []
        given += ["--force"] * force + [word for path in plugin or [] for word in ("--plugin", plain_path(path))]
        return launch(["export", *given, "--device", device, *verbosity(), "--", name, *(words or [])], devices, device)
    if started_together() and not shared and os.environ.get("RANK", "0") != "0":
        return 0  # that of rank 0 exports it
    from sslcli.evaluation.export import export as run_export

    target = Path(targets[0]) if targets else None
    with joined(device, shared=shared and started_together()):
        exported = run_export(name, target, output, overrides, replace=force, device=device)
        if distributed.rank() != 0:
            return 0
    log.info(f"wrote {exported.path} ({exported.path.stat().st_size / 2**20:.1f} MiB); load it with:")
    show(exported.how_to_load)
    return 0
