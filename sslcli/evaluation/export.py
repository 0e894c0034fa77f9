"""`export`: loads what was trained and hands it to an exporter."""

from __future__ import annotations

from pathlib import Path

from sslcli.config.options import parse_options
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Exported, Exporter
from sslcli.plugins import load
from sslcli.runs.device import resolve_device
from sslcli.runs.directory import RunDirectory
from sslcli.runs.trained import load_trained


def export(
    name: str,
    target: Path,
    path: Path | None,
    overrides: list[str],
    *,
    replace: bool = True,
    device: str = "auto",
) -> Exported:
    """Exports.

    Args:
        name: of the exporter.
        target: a run directory, a checkpoint or a backbone file.
        path: the file to write; None: into the run directory, or beside the file.
        overrides: options of the exporter, `key=value`.
        replace: whether files that are there may be replaced. The `backbone.safetensors` that every run has is, if no
            other file is named: it was made from the run, as the new one is.
        device: where exporters that compute do so: `auto`, `cpu`, `cuda`, `cuda:N`.

    Raises:
        UserError: unknown exporter, nothing trained there, wrong options, or a place that cannot be written.
    """
    cls: type[Exporter] = load("exporters", name)
    exporter = cls(parse_options(cls.Options, overrides, repr(name)))
    exporter.device = resolve_device(device)
    target = target.expanduser()
    own = RunDirectory(target).backbone if path is None and target.is_dir() else None
    path = _default_output(name, target, exporter) if path is None else path.expanduser()
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; --output wants a file")
    for file in exporter.outputs(path):
        if file.exists() and not replace and file != own:
            raise UserError(f"{file}: exists already; choose another --output, or replace it with --force")
    return exporter.export(load_trained(target), path)


def _default_output(name: str, target: Path, exporter: Exporter) -> Path:
    suffix = exporter.default_suffix()
    return target / f"{name}{suffix}" if target.is_dir() else target.with_name(f"{target.stem}-{name}{suffix}")
