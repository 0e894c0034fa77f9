"""`ssl train`: trains a backbone from a config, or resumes a run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslcli.contracts.errors import UserError
from sslcli.foreign import show
from sslcli.shell import path_word, plain_path, shell_word
from sslcli.storage import expanded

from . import completion
from .arguments import Devices, Overrides, PluginFiles, config_and_overrides, verbosity
from .next_steps import devices_again, next_steps

if TYPE_CHECKING:
    from sslcli.config.resolve import RunConfig
    from sslcli.plugins import PluginFile

log = logging.getLogger(__name__)


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="YAML config, the name of an example (`ssl list configs`), or the directory of a run; none: "
            "method=NAME data=FOLDER are enough.",
            metavar="[CONFIG_OR_RUN]",
            autocompletion=completion.configs,
        ),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Run directory; by default runs/CONFIG-HASH, or runs/METHOD-HASH.", metavar="DIRECTORY"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run; start it if there is none.")] = False,
    plugin: PluginFiles = None,
    devices: Devices = None,
    max_restarts: Annotated[
        int,
        typer.Option(help="Restarts from the last checkpoint after a crash or a hang, at most.", min=0, metavar="N"),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved config and the size of the run, then exit.")
    ] = False,
) -> int:
    """Pre-train a backbone.

    Every option of a config: `ssl list training`, `ssl list methods NAME`, … (`ssl list` names all), or docs/config.md.

    Examples: ssl train quickstart training.epochs=5

    ssl train method=simclr data=~/photos
    """
    from sslcli.config.resolve import load_config
    from sslcli.plugins import register_file
    from sslcli.runs.layout import LOCK

    source, given = config_and_overrides(train, config, overrides)
    is_run = source is not None and (source / "config.yaml").is_file()
    if source is not None and is_run and not (resume or dry_run or output is not None):
        raise UserError(f"{source}: is a run; resume it with `ssl train {path_word(source)} --resume`")
    if source is not None and not is_run and (source / LOCK).is_file():
        how = f"`ssl train CONFIG --output {path_word(source)}`"
        raise UserError(f"{source}: its start was killed before its config was written; start it again: {how}")
    plugin_files = [register_file(path) for path in plugin or []]
    # Processes that are started here show what there is to say about the config.
    several = ((devices or 1) > 1 or max_restarts > 0) and not dry_run
    if max_restarts and "WORLD_SIZE" in os.environ:
        raise UserError("--max-restarts: this process was started by another program; use torchrun's --max-restarts")
    logging.getLogger("sslcli.config").setLevel(logging.WARNING if several else logging.NOTSET)
    path = source / "config.yaml" if source is not None and is_run else source
    resolved = load_config(path, given, follow=not (is_run and resume))  # a run keeps what it has

    from sslcli.contracts.data import StreamDataset  # torch is imported from here on
    from sslcli.dynamo import postpone
    from sslcli.runs.directory import default_directory

    postpone()
    name = resolved.method.name.rpartition(":")[2] if source is None else source.stem
    directory = source if source is not None and is_run else default_directory(resolved, name)
    directory = expanded(output) if output is not None else directory
    if dry_run:
        processes = devices or int(os.environ.get("WORLD_SIZE", "1"))
        _show_plan(resolved, directory, processes, resume=resume, plugin_files=plugin_files)
        return 0
    if several:
        from sslcli.runs.directory import RunDirectory
        from sslcli.runs.layout import CHECKPOINTS, list_checkpoints, step_of
        from sslcli.training.launch import launch

        # Before the first start, which may fail before it looks: the next one resumes whatever run is there.
        RunDirectory(directory).check_new(resume=resume)

        def step() -> int | None:
            return next(map(step_of, list_checkpoints(directory / CHECKPOINTS)), None)

        words = arguments(source, given, directory, plugin) + ["--resume"] * resume + verbosity()
        return launch(words, devices or 1, resolved.training.device, restarts=max_restarts, step=step)
    from sslcli.training.train import train as run_training

    command = ["ssl", *sys.argv[1:]]
    result = run_training(resolved, directory, resume=resume, command=command, plugin_files=plugin_files)
    if os.environ.get("RANK", "0") != "0":
        return 128 + result.signal if result.signal is not None else 0
    if result.signal is not None:
        again = ["ssl", *arguments(source, given, directory, plugin), "--resume", *devices_again()]
        where = f"step {result.step} of {result.total_steps}"
        log.warning(f"interrupted and saved at {where}; resume with: {' '.join(map(shell_word, again))}")
        return 128 + result.signal
    if result.step < result.total_steps:
        longer = [] if result.stopped is not None else ["training.max_steps=null"]
    else:
        longer = [f"training.epochs={2 * resolved.training.epochs}"]
    cls = resolved.data.cls
    labeled = cls.labeled(resolved.data.options, "train") is not None
    evaluator = None if issubclass(cls, StreamDataset) else "linear" if labeled else "quality"
    longer += devices_again()
    log.info("next:")
    show("\n".join(next_steps(directory, evaluator=evaluator, longer=longer, plugins=plugin or [])))
    return 0


def arguments(config: Path | None, overrides: list[str], directory: Path, plugin: list[Path] | None) -> list[str]:
    """Returns the arguments of `ssl` that train this run again."""
    files = [word for path in plugin or [] for word in ("--plugin", plain_path(path))]
    source = [plain_path(config)] if config is not None else []
    return ["train", *source, *overrides, "--output", plain_path(directory), *files]


def _show_plan(
    config: RunConfig, directory: Path, processes: int, *, resume: bool, plugin_files: list[PluginFile]
) -> None:
    from sslcli.config.document import dump_yaml
    from sslcli.logs import shown
    from sslcli.runs.checkpoint import newest_intact
    from sslcli.runs.directory import RunDirectory
    from sslcli.training.estimate import estimate
    from sslcli.training.memory import less_memory
    from sslcli.training.prepare import prepared
    from sslcli.training.resume import read
    from sslcli.training.setup import plan

    checkpoint = newest_intact(RunDirectory(directory).checkpoints, read) if resume else None
    session = prepared(config, checkpoint, directory, plugin_files, compiled=False, processes=processes)
    show(dump_yaml({**session.config.plain(), "output": str(directory)}), end="")
    show("# plan")
    for name, value in plan(session).items():
        show(f"# {name.replace('_', ' ')}: {shown(_readable(name, value))}")
    memory = estimate(session, processes)
    show(f"# memory{' of each process' if processes > 1 else ''}: {memory.line()}")
    if memory.fits is False:
        log.warning(f"a step is not likely to fit into the memory of {session.device}: {less_memory(session.config)}")


def _readable(name: str, value: Any) -> str:
    if name == "data_bytes":
        return f"{value / 2**20:,.1f} MiB on the device"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
