"""What a run is made with besides its config: its images, its plugins' code, versions. Stored, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sslcli.data.identity import identify
from sslcli.data.source import ResidentSource
from sslcli.plugins import PYTHON, PluginFile
from sslcli.version import __version__

from .setup import Session
from .state import plugins_used

#: Class names that a message shows.
_NAMES = 5


def provenance(session: Session, plugin_files: Sequence[PluginFile] = ()) -> dict[str, Any]:
    """Returns what a run is made with, as JSON data: `data` (see `identify`), `plugins`, `plugin_files`, `versions`."""
    images = session.source.images if isinstance(session.source, ResidentSource) else None
    return {
        "data": identify(session.dataset, images),
        "plugins": plugins_used(session.config),
        "plugin_files": {file.path.name: file.sha256 for file in plugin_files},
        "versions": {"sslcli": __version__, "torch": torch.__version__},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what differs between the provenance of a run and that of its resumption, and what that means.

    Args:
        before: as a checkpoint has it; what one of an older version lacks is not compared.
        now: what `provenance` returns.
    """
    lines = _of_data(before.get("data"), now["data"]) + _of_plugins(before, now)
    for name, version in now["versions"].items():
        stored = before.get("versions", {}).get(name, version)
        if stored != version:
            lines.append(f"{name} {stored} in the run, {version} now: results will not be bitwise identical")
    return lines


def _of_data(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    if before is None:
        return []
    lines = []
    if before["images"] != now["images"]:
        lines.append(
            f"the data has changed: {before['images']:,} images in the run, {now['images']:,} now, in another order; "
            "mean and std stay the run's"
        )
    elif before["files"] != now["files"] and before.get("kind") == now.get("kind"):
        lines.append(
            f"the data has changed: {now['images']:,} images as in the run, but some are others (names, sizes or "
            "pixels differ)"
        )
    if before["classes"] != now["classes"]:
        counts = [f"{len(each):,}" if each is not None else "none" for each in (before["classes"], now["classes"])]
        different = sorted(set(before["classes"] or ()) ^ set(now["classes"] or ()))
        named = f" ({', '.join(map(repr, different[:_NAMES]))}{', …' * (len(different) > _NAMES)})" if different else ""
        lines.append(f"the classes have changed: {counts[0]} in the run, {counts[1]} now{named}: labels mean others")
    elif before["labels"] != now["labels"] and not lines:
        lines.append("the labels of the images have changed")
    return lines


def _of_plugins(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Files by their whole hash; of packages the versions. The run goes on with the code that is there."""
    files = {name: (before.get("plugin_files", {}).get(name), digest) for name, digest in now["plugin_files"].items()}
    lines = [
        f"the plugin file {name} has changed (sha256 {stored[:8]} in the run, {digest[:8]} now): the run goes on with "
        "the changed code"
        for name, (stored, digest) in files.items()
        if stored is not None and stored != digest
    ]
    named = {name.rpartition(".")[0] for name, (stored, _) in files.items() if stored is not None}
    for key, found in now["plugins"].items():
        stored = before.get("plugins", {}).get(key)
        if stored is None or stored["name"] != found["name"] or found["package"] in ("sslcli", PYTHON, *named):
            continue
        versions = [f"{each['package']} {each['version']}" for each in (stored, found)]
        if versions[0] != versions[1]:
            line = f"the plugin of {key} {found['name']!r} has changed: {versions[0]} in the run, {versions[1]} now"
            lines.append(line)
    return lines
