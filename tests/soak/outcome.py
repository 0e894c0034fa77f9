"""What a disturbed run left, beside what the undisturbed one did. No torch: the process that forks computes nothing."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

_TIMES = {"images_per_second", "data_wait"}


def tensors(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads a safetensors file: the document that sslcli put into its header, and dtype, shape and bytes by name."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:begin])
    document: dict[str, Any] = json.loads(header.pop("__metadata__")["sslcli"])
    found = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        found[name] = f"{entry['dtype']} {entry['shape']} ".encode() + content[begin + start : begin + stop]
    return document, found


def differences(undisturbed: Path, run: Path) -> list[str]:
    """Returns what differs in backbone, last checkpoint and log: tensors byte by byte, so NaN equals itself."""
    found = []
    names = ["backbone.safetensors", max((undisturbed / "checkpoints").glob("step-*")).relative_to(undisturbed)]
    for name in names:
        if not (run / name).is_file():
            found.append(f"{name} is missing")
            continue
        (document, whole), (other, parts) = tensors(undisturbed / name), tensors(run / name)
        different = sorted(each for each in whole.keys() | parts.keys() if whole.get(each) != parts.get(each))
        if different:
            found.append(f"{name}: {len(different)} of {len(whole)} tensors, {different[0]} first")
        found += [f"{name}: {key}" for key in ("step", "numbers", "scaler") if document.get(key) != other.get(key)]
    logs = [_log(path / "metrics.jsonl") for path in (undisturbed, run)]
    if logs[0] != logs[1]:
        lines = [a for a in logs[1] if a not in logs[0]] or [a for a in logs[0] if a not in logs[1]]
        found.append(f"metrics.jsonl: {len(logs[1])} lines of {len(logs[0])}, {lines[:1]}")
    return found


def _log(path: Path) -> list[dict[str, Any]]:
    """The lines without times. One of a monitor may be there twice, if the run was killed at its end."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        line = {key: value for key, value in json.loads(text).items() if key not in _TIMES}
        if "loss" in line or line not in lines:
            lines.append(line)
    return lines


def left_files(folder: Path) -> list[str]:
    """Returns temporary files, and locks that are held, in a folder and below."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.endswith(".lock"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(f"{name} is held")
        elif path.name.startswith(".") or path.name.endswith(".tmp"):
            found.append(name)
    return found
