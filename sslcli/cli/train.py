"""`ssl train`: from a config (or a run to go on with) to a backbone."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslcli.contracts.errors import UserError

if TYPE_CHECKING:
    from sslcli.config.resolve import RunConfig

log = logging.getLogger(__name__)


def train(
    config: Annotated[Path, typer.Argument(help="YAML config, or the directory of a run.", metavar="CONFIG_OR_RUN")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Options of the config, as optimizer.lr=0.3", metavar="[KEY=VALUE]...")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory; default runs/CONFIG-HASH.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run; start it if there is none.")] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="Python file whose plugin classes to register.", metavar="FILE")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes on this machine, one for each GPU.", min=1, metavar="N")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved config and the plan, and stop.")
    ] = False,
) -> int:
    """Pre-train a backbone.

    Example: ssl train examples/configs/quickstart.yaml training.epochs=5
    """
    from sslcli.config.resolve import load_config
    from sslcli.plugins import register_file

    is_run = (config / "config.yaml").is_file()
    if is_run and not (resume or dry_run or output is not None):
        raise UserError(f"{config}: is a run; go on with `ssl train {shlex.quote(str(config))} --resume`")
    plugin_files = [register_file(path) for path in plugin or []]
    resolved = load_config(config / "config.yaml" if is_run else config, overrides or [])
    directory = output.expanduser() if output is not None else config if is_run else default_output(config, resolved)

    if dry_run:
        _show_plan(resolved, directory)
        return 0
    if devices is not None and devices > 1:
        from sslcli.training.group import launch  # from here on torch is needed

        words = arguments(config, overrides, directory, plugin) + ["--resume"] * resume
        level = logging.getLogger("sslcli").level
        words += ["--quiet"] * (level == logging.WARNING) + ["--verbose"] * (level == logging.DEBUG)
        return launch(words, devices, resolved.training.device)
    from sslcli.training.train import train as run_training

    result = run_training(
        resolved,
        directory,
        resume=resume,
        command=["ssl", *sys.argv[1:]],
        plugin_files=plugin_files,
    )
    if os.environ.get("RANK", "0") != "0":
        return 128 + result.signal if result.signal is not None else 0
    if result.signal is not None:
        again = ["ssl", *arguments(config, overrides, directory, plugin), "--resume"]
        where = f"step {result.step} of {result.total_steps}"
        log.warning(f"interrupted and saved at {where}; resume with: {shlex.join(again)}")
        return 128 + result.signal
    print(next_steps(directory, labeled=resolved.data.cls.labeled(resolved.data.options, "train") is not None))
    return 0


def arguments(config: Path, overrides: list[str] | None, directory: Path, plugin: list[Path] | None) -> list[str]:
    """Returns what to type behind `ssl` to train this again."""
    files = [word for path in plugin or [] for word in ("--plugin", str(path))]
    return ["train", str(config), *(overrides or []), "--output", str(directory), *files]


def default_output(config: Path, resolved: RunConfig) -> Path:
    """Returns the run directory where none is asked for: `output:` of the config, or `runs/CONFIG-HASH`."""
    return resolved.output or Path("runs") / f"{config.stem}-{resolved.digest()}"


def next_steps(directory: Path, *, labeled: bool) -> str:
    """Returns one line of shell that evaluates, exports and loads what a run made."""
    place, file = shlex.quote(str(directory)), f"{directory.name}.safetensors"
    program = f'import sslcli; print(sslcli.load_backbone("{file}").spec)'
    steps = [f"ssl eval {place} --method linear"] if labeled else []
    steps += [f"ssl export backbone {place} --output {shlex.quote(file)}", f"python -c {shlex.quote(program)}"]
    return " && ".join(steps)


def _show_plan(config: RunConfig, directory: Path) -> None:
    from sslcli.config.document import dump_yaml
    from sslcli.training.setup import build
    from sslcli.training.train import plan

    session = build(config, compiled=False)
    print(dump_yaml({**session.config.plain(), "output": str(directory)}), end="")
    print("# plan")
    for name, value in plan(session).items():
        print(f"# {name.replace('_', ' ')}: {_readable(name, value)}")


def _readable(name: str, value: Any) -> str:
    if name == "data_bytes":
        return f"{value / 2**20:,.1f} MiB on the device"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
