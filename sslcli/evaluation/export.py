"""`export`: loads a trained backbone and gives it to an exporter."""

from __future__ import annotations

from pathlib import Path

from sslcli import distributed
from sslcli.config.options import parse_options
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.memory import out_of_memory
from sslcli.plugins import load
from sslcli.runs.arithmetic import exact_float32
from sslcli.runs.device import resolve_device
from sslcli.runs.directory import RunDirectory
from sslcli.runs.trained import load_trained, newest_run
from sslcli.storage import expanded

from .classifier import load_classifier, newest_classifier


@exact_float32()
def export(
    name: str,
    target: Path | None,
    path: Path | None,
    overrides: list[str],
    *,
    replace: bool = True,
    device: str = "auto",
) -> Exported:
    """Exports a trained backbone.

    Args:
        name: of the exporter.
        target: a run directory, a checkpoint or a backbone file; None: the newest run in `runs/`. For an exporter that
            needs a classifier a result, or a run, whose newest is taken.
        path: the file to write; None: into the run directory, or beside the file.
        overrides: options of the exporter, `key=value`.
        replace: whether existing files may be replaced. A run's own `backbone.safetensors` always is, if no other file
            is named: it was made from the run, as the new one is.
        device: for exporters that compute something: `auto`, `cpu`, `cuda`, `cuda:N`.

    Raises:
        OutOfMemory: there is not enough memory.
        UserError: unknown exporter, nothing trained there, invalid options, or a file that cannot be written.
    """
    cls: type[Exporter] = load("exporters", name)
    advice = "try a smaller batch_size" if "batch_size" in cls.Options.model_fields else "end other programs"
    advice += ", or --device cpu" if device != "cpu" else ""
    needs_less = out_of_memory(f"exporting {name!r}", advice)
    prepare = needs_less(lambda: _prepare(cls, name, target, path, overrides, replace=replace, device=device))
    exporter, trained, file = distributed.together(prepare)
    work = needs_less(lambda: exporter.export(trained, file))
    # Every process returns what the main one has written.
    exported = distributed.from_main(distributed.lead(work, lambda _: exporter.assist(trained)))
    assert exported is not None
    return exported


def _prepare(
    cls: type[Exporter],
    name: str,
    target: Path | None,
    path: Path | None,
    overrides: list[str],
    *,
    replace: bool,
    device: str,
) -> tuple[Exporter, Trained, Path]:
    """The exporter, the backbone and the file to write, all of which can be used."""
    exporter = cls(parse_options(cls.Options, overrides, repr(name)))
    exporter.device = distributed.own_device(resolve_device(device))
    if target is None:
        target = newest_classifier() if cls.needs_classifier else newest_run("export", f"ssl export {name} RUN")
    target, loader = expanded(target), load_classifier if cls.needs_classifier else load_trained
    own = RunDirectory(target).backbone if path is None and target.is_dir() else None
    if path is None:
        suffix = exporter.default_suffix()
        path = target / f"{name}{suffix}" if target.is_dir() else target.with_name(f"{target.stem}-{name}{suffix}")
    path = expanded(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: the directory {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; --output should be a file")
    for file in exporter.outputs(path):
        if file.exists() and not replace and file != own:
            raise UserError(f"{file}: already exists; choose another --output, or replace it with --force")
    return exporter, loader(target), path
