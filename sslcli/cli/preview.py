"""`ssl preview`: a picture of images beside their views."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from sslcli.storage import expanded

from .arguments import Config, Overrides, PluginFiles, config_and_overrides

log = logging.getLogger(__name__)


def preview(
    config: Config = None,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG file to write; an earlier picture is replaced.", metavar="FILE")
    ] = Path("views.png"),
    images: Annotated[
        int, typer.Option(help="Images to show, at most those of a micro-batch.", min=1, max=64, metavar="N")
    ] = 8,
    step: Annotated[
        int, typer.Option(help="Optimizer step whose images and draws are shown; the first is 0.", min=0, metavar="N")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file whatever it is.")] = False,
    plugin: PluginFiles = None,
) -> int:
    """Draw the images of a step beside their views, as the method gets them, with what was done to each.

    A run draws the same picture of its first step: views.png in its directory. CONFIG may be the directory of a run.

    Example: ssl preview quickstart views.strength=2 --output views.png
    """
    from sslcli.config.resolve import load_config
    from sslcli.plugins import register_file
    from sslcli.runs.layout import CONFIG

    files = [register_file(path) for path in plugin or []]
    source, given = config_and_overrides(preview, config, overrides)
    if source is not None and (source / CONFIG).is_file():  # a run
        source = source / CONFIG
    resolved = load_config(source, given)

    from sslcli.training.prepare import prepared  # torch is imported from here on
    from sslcli.training.preview import check_replaceable, columns_of, drawn, write

    path = expanded(output)
    check_replaceable(path, force=force)
    session = prepared(resolved, None, path, files, compiled=False)
    try:
        columns = columns_of(session, images, step, tell=True)
        write(drawn(columns), path)
    finally:
        session.source.close()
    count = len(columns[0].images)
    log.info(f"wrote {path}: {count} image{'s' * (count > 1)}{', all of a micro-batch' if count < images else ''}")
    return 0
