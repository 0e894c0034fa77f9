"""Arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import completion

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Options of the config, such as optimizer.lr=0.3; `ssl list` shows what there is.",
        metavar="KEY=VALUE",
        autocompletion=completion.overrides,
    ),
]
Config = Annotated[Path, typer.Argument(help="YAML config.", metavar="CONFIG", autocompletion=completion.configs)]
PluginFiles = Annotated[
    list[Path] | None, typer.Option(help="Python file with plugin classes to register.", metavar="FILE")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=completion.devices)]
