"""`export`: loads what was trained and hands it to an exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config.options import parse_options
from ..contracts.errors import UserError
from ..contracts.export import Exported, Exporter
from ..plugins import load
from ..runs.trained import load_trained


def default_output(name: str, target: Path) -> Path:
    """Returns where `ssl export NAME TARGET` writes to: into a run directory, or beside a file."""
    suffix = load("exporters", name).suffix
    return target / f"{name}{suffix}" if target.is_dir() else target.with_name(f"{target.stem}-{name}{suffix}")


def export(name: str, target: Path, path: Path, overrides: list[str], *, tell: Callable[[str], None]) -> Exported:
    """Exports.

    Args:
        name: of the exporter.
        target: a run directory, a checkpoint or a backbone file.
        path: the file to write.
        overrides: options of the exporter, `key=value`.
        tell: shows a line to the user.

    Raises:
        UserError: unknown exporter, nothing trained there, wrong options, or a place that cannot be written.
    """
    cls: type[Exporter] = load("exporters", name)
    options = parse_options(cls.Options, overrides, repr(name))
    trained = load_trained(target, tell)
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; --output wants a file")
    return cls(options).export(trained, path)
