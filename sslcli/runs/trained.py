"""Loads a trained backbone from a run directory, a checkpoint or a backbone file: the backbone alone, no method."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.shell import path_word
from sslcli.storage import expanded

from . import files
from .backbone_file import build_backbone, check_types, load_backbone_file, read_card, read_plugin
from .checkpoint import newest_intact, read_checkpoint, read_header
from .directory import RunDirectory
from .layout import RUNS, list_checkpoints
from .overview import newest_first

log = logging.getLogger(__name__)

#: Files that hold a network without its class, and what loads them.
_OTHER_KINDS = {
    ".onnx": "is an ONNX model, which onnxruntime.InferenceSession loads",
    ".pt2": "is an exported program, which torch.export.load(...).module() loads",
    ".npy": "is an array, which numpy.load loads",
    ".json": "is no network; of a result `ssl export classifier` takes the classifier",
}


def load_trained(target: Path) -> Trained:
    """Loads a backbone, on the CPU, in `eval()`.

    Args:
        target: a run directory (its newest intact checkpoint is read), a checkpoint, or a backbone file.

    Raises:
        UserError: nothing there to load, or the backbone's plugin is missing or has changed.
    """
    target = expanded(target)
    run = RunDirectory(target)
    if run.is_run():
        trained = newest_intact(run.checkpoints, lambda path: _from_checkpoint(path, target), UserError)
        if trained is None:
            command = f"ssl train {path_word(target)} --resume"
            raise UserError(f"{target}: has no checkpoint yet; train it first, with `{command}`")
        return trained
    if target.is_dir():
        raise UserError(f"{target}: is not a run directory (it has no config.yaml)")
    if not target.exists():
        raise UserError(f"{target}: no such run or file")
    if not target.is_file():
        raise UserError(f"{target}: is not a regular file; name a run or a backbone file")
    if target.suffix in _OTHER_KINDS:
        raise UserError(f"{target}: {_OTHER_KINDS[target.suffix]}; name the run or a backbone file")
    try:
        document = files.read_document(target)
        if document.get("kind") == "features":
            raise UserError(f"{target}: holds features of images, not a network; name the run or a backbone file")
        if document.get("kind") == "classifier":
            raise UserError(f"{target}: is a classifier, which sslcli.load_classifier loads; name the run")
        if not {"encoder", "format_version"} & document.keys():
            return load_backbone_file(target)
        run = RunDirectory(target.parent.parent)
        return _from_checkpoint(target, run.path if run.is_run() else None)
    except files.DamagedFile as error:
        raise UserError(str(error)) from error


def newest_run(wanted: str, command: str) -> Path:
    """Returns what to load from the newest run below `runs/`, and tells which one it is: the run, or its backbone file
    if that is all there is. Runs without either are passed over; damaged ones with a warning.

    Args:
        wanted: what is to be done with it, for the message: `evaluate`.
        command: how to name a run, likewise: `ssl eval RUN`.

    Raises:
        UserError: there is none; it says where they were looked for.
    """
    runs = newest_first(RUNS)
    without: list[Path] = []
    for run in runs:
        try:
            found = _loadable(run)
        except (files.DamagedFile, OSError) as error:
            log.warning(f"skipped: {error}")
            continue
        if found is not None:
            newer = f" with a checkpoint (newer, without: {', '.join(map(str, without))})" if without else ""
            log.info(f"using {found}, {'' if found == run else 'of '}the newest run{newer}")
            return found
        without.append(run)
    where = RUNS.absolute()
    found_none = f"none of the {len(runs)} runs in {where} has one" if runs else f"there is no run in {where}"
    raise UserError(f"nothing to {wanted}: give a run with a checkpoint, or a file (`{command}`); {found_none}")


def _loadable(run: Path) -> Path | None:
    """A run if it has a checkpoint with an intact encoder, or else its intact backbone file; None if it has neither.

    Raises:
        DamagedFile: it has some, but none is intact.
    """
    problem = None
    for path in [*list_checkpoints(RunDirectory(run).checkpoints), RunDirectory(run).backbone]:
        try:
            if path == RunDirectory(run).backbone:
                files.read(path)
                return path
            read_checkpoint(path, _prefix(path))
            return run
        except FileNotFoundError:
            continue
        except files.DamagedFile as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def _from_checkpoint(path: Path, run: Path | None) -> Trained:
    prefix = _prefix(path)
    checkpoint = read_checkpoint(path, prefix)
    state = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.tensors.items()}
    card = read_card(path, checkpoint.document.get("card"))
    plugin = read_plugin(checkpoint.document.get("plugins", {}).get("backbone"))

    def fill(built: Backbone) -> None:
        check_types(built.state_dict(), state)
        built.load_state_dict(state, strict=True)

    backbone = build_backbone(path, card, fill, _made_with(path, plugin))
    return Trained(backbone, card, run, files.read_digest(path), path, plugin)


def _prefix(path: Path) -> str:
    """That of the encoder's tensors in a checkpoint; if it has none that is a word, reading the checkpoint says so."""
    return str(read_header(path).get("encoder", ""))


def _made_with(path: Path, plugin: dict[str, str] | None) -> str:
    """Says which package the backbone of a checkpoint is from; an empty string if that is not known."""
    if plugin is None:
        return ""
    kept = path.parent.parent / "plugins" / f"{plugin['package']}-{plugin['version']}.py"
    if kept.is_file():
        return f"the run was made with a --plugin file, kept as {kept}: install it as a package"
    return f"the run was made with {plugin['package']} {plugin['version']}: install it"


def stored_card(target: Path) -> BackboneCard:
    """Returns the card of the backbone that `load_trained` would load, without building it; raises like that."""
    card = _stored_document(target).get("card")
    if card is None:
        raise UserError(f"{target}: there is no trained backbone that can be read")
    return read_card(target, card)


def stored_config(target: Path) -> dict[str, Any] | None:
    """Returns the resolved config of the run that a target belongs to, or None for a backbone file."""
    config = _stored_document(target).get("config")
    return config if isinstance(config, dict) else None


def _stored_document(target: Path) -> dict[str, Any]:
    """The document of the file that `load_trained` would read; empty if there is none."""
    target = expanded(target)
    for path in list_checkpoints(RunDirectory(target).checkpoints) if target.is_dir() else [target]:
        with suppress(files.DamagedFile, FileNotFoundError):
            return read_header(path)
    return {}
