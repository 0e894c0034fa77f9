"""`ssl export`: writes a trained backbone for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..contracts.errors import UserError


def export(
    name: Annotated[str, typer.Argument(help="What to export; see `ssl list exporters`.", metavar="EXPORTER")],
    target: Annotated[Path, typer.Argument(help="Run directory, checkpoint or backbone file.", metavar="RUN")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Options of the exporter.", metavar="[KEY=VALUE]...")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; default: in the run directory.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
) -> int:
    """Write a trained backbone for other tools, and show how to load it.

    Example: ssl export backbone runs/quickstart-1a2b3c4d --output resnet18.safetensors
    """
    from ..plugins import choose

    choose("exporters", name)  # a typo is told before torch is loaded

    from ..exporting.run import default_output
    from ..exporting.run import export as run_export
    from ..reporting.console import tell

    path = output.expanduser() if output is not None else default_output(name, target)
    inside_run = output is None and target.is_dir()  # made from the run, so nothing is lost by making it again
    if path.is_file() and not (force or inside_run):
        raise UserError(f"{path}: exists already; choose another --output, or replace it with --force")
    exported = run_export(name, target, path, overrides or [], tell=tell)
    tell(f"wrote {exported.path} ({exported.path.stat().st_size / 2**20:.1f} MiB); load it with:")
    print(exported.how_to_load)
    return 0
