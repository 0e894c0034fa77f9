"""Packs what must be brought to a lent machine into `.gpu/`, in parts that each travel with the repository.

A part holds the commit, the wheels that are missing there, files of CIFAR-10, and pieces of a rung that is to go on.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import Parser
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torchvision.datasets import CIFAR10

from . import packing
from .rungs import PIECES_A_CALL, ROOT, RUNGS, rungs_of
from .stages import PARTS, commit

PLACE = ROOT / ".gpu"
#: What travels in one call may be this large, the repository's own files included.
LIMIT = 64 << 20
#: The dependencies of pyproject.toml that the lent machine has; all others, and what they need, are brought.
THERE = frozenset({"numpy", "torch", "torchvision", "pillow", "typer", "rich", "pyyaml", "safetensors", "tensorboard"})
#: The lent machine's Python, and the tags of wheels that pip accepts for it.
PYTHON, TAGS = "3.12", ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "_2_12", "2010", "_2_5", "1")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
#: Digests of the official files.
_OFFICIAL = dict([*CIFAR10.train_list, *CIFAR10.test_list])


class Unprepared(ValueError):
    """Something that must be brought is missing or too large; the message says what to do."""


def prepare(cifar: Path | None, state: Path | None, rung: str | None) -> str:
    """Writes the parts and returns the commands to paste.

    Args:
        cifar: the folder with `cifar-10-batches-py`; None: drawn images in the same format, to try everything out.
        state: a folder with the pieces of an interrupted rung.
        rung: the rung that the commands are for; None: a day's two parts.

    Raises:
        Unprepared: something is missing, damaged or too large.
    """
    if PLACE.exists():
        shutil.rmtree(PLACE)
    wheels = PLACE / "wheels"
    fetch_wheels(wheels)
    images = PLACE / "cifar10"
    pack_cifar(cifar if cifar is not None else drawn_cifar(PLACE / "drawn"), images)
    shutil.rmtree(PLACE / "drawn", ignore_errors=True)
    pieces = sorted(state.glob(f"{rung}.[0-9][0-9][0-9]")) if state is not None else []
    if state is not None and not pieces:
        raise Unprepared(f"{state}: has no pieces of {rung} ({rung}.000, …)")
    tree = sum((ROOT / name).lstat().st_size for name in _listed() if (ROOT / name).is_file())
    used = tree + sum(path.stat().st_size for path in wheels.iterdir())
    parts = distribute(sorted(images.iterdir()), pieces, LIMIT - used)
    head = commit()
    lines = [f"commit {head}; the repository is {tree / 1e6:.1f} MB, wheels {(used - tree) / 1e6:.1f} MB"]
    for name, files in zip("abcdefgh", parts, strict=False):
        part = PLACE / name
        shutil.copytree(wheels, part / "wheels")
        (part / "COMMIT").write_text(head + "\n")
        for path in files:
            target = part / ("state" if path in pieces else "cifar10") / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
        size = tree + sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        lines.append(f"part {name}: {size / 2**20:.1f} of {LIMIT >> 20} MiB with the repository")
    for folder in (wheels, images):
        shutil.rmtree(folder)
    return "\n".join([*lines, "", *commands(len(parts), rung)])


def distribute(images: Sequence[Path], pieces: Sequence[Path], room: int) -> list[list[Path]]:
    """Returns the files of each part: the images in two, then the pieces where there is room, in as many as needed.

    Raises:
        Unprepared: a half of the images does not fit.
    """
    ordered = sorted(images, key=lambda path: -path.stat().st_size)
    parts: list[list[Path]] = [[], []]
    for path in ordered:
        min(parts, key=_size).append(path)
    if max(map(_size, parts)) > room:
        raise Unprepared(f"half of the images are {max(map(_size, parts))} bytes, and there is room for {room}")
    for piece in pieces:
        fitting = [part for part in parts if _size(part) + piece.stat().st_size <= room]
        if fitting:
            fitting[0].append(piece)
        else:
            parts.append([piece])
    return parts


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def commands(parts: int, rung: str | None) -> list[str]:
    """Returns what to run on the lent machine, call by call."""
    lines = ["Calls, each in the repository's root, one after the other on the same warm machine:"]
    for number in range(parts):
        name, last = "abcdefgh"[number], number == parts - 1
        if rung is None:
            seconds, stages = PARTS[name]
            what = f".ci/gpu run --seconds {seconds} --stages {','.join(stages)}"
        elif not last:
            seconds, what = 60, ".ci/gpu run --seconds 60" + (" --stages env" if number == 0 else "")
        else:
            seconds = 600 - 40 * number  # a session has 15 minutes; a call takes half a minute to send
            what = f".ci/gpu run --seconds {seconds} --stages {rung}"
        lines.append(f'  carry .gpu/{name}, limit {seconds + 30} s:  {what} --out "$OUT"')
    if rung is not None:
        lines.append("If it was packed, before the machine is given back, with nothing to carry, for the other pieces:")
        pieces = math.ceil(max(RUNGS[each].megabytes for each in rungs_of(rung)) * 1e6 / packing.PIECE)
        for first in range(PIECES_A_CALL, pieces, PIECES_A_CALL):
            lines.append(f'  limit 60 s:  .ci/gpu run --seconds 30 --bring {rung}:{first} --out "$OUT"')
    lines.append("Then, for the folder that came back from each call:  .ci/gpu keep FOLDER")
    return lines


def fetch_wheels(folder: Path) -> None:
    """Downloads what the lent machine does not have, with all it needs in turn, and builds the project's own wheel."""
    folder.mkdir(parents=True)
    _pip("wheel", "--no-deps", "-w", str(folder), str(ROOT))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting, brought = [Requirement(each) for each in project["dependencies"]], {canonicalize_name(project["name"])}
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if name in THERE or name in brought:
            continue
        brought.add(name)
        tags = [word for tag in TAGS for word in ("--platform", f"manylinux{tag}_x86_64")]
        chosen = f"{needed.name}{needed.specifier}"
        _pip("download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp",
             *tags, "-d", str(folder), chosen)  # fmt: skip
        waiting += requirements(next(path for path in folder.glob("*.whl") if _name(path) == name))


def requirements(wheel: Path) -> list[Requirement]:
    """Returns what a wheel needs on the lent machine, without extras."""
    with zipfile.ZipFile(wheel) as file:
        name = next(each for each in file.namelist() if each.endswith(".dist-info/METADATA"))
        listed = Parser().parsestr(file.read(name).decode()).get_all("Requires-Dist") or []
    found = [Requirement(each) for each in listed]
    there = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
    return [each for each in found if each.marker is None or each.marker.evaluate(there)]


def _name(wheel: Path) -> str:
    return canonicalize_name(wheel.name.split("-")[0])


def pack_cifar(root: Path, folder: Path) -> None:
    """Packs CIFAR-10's files, and makes sure that each comes out byte for byte.

    Raises:
        Unprepared: a file is missing.
    """
    folder.mkdir(parents=True)
    source = root / "cifar-10-batches-py"
    for name in (*BATCHES, "batches.meta"):
        if not (source / name).is_file():
            raise Unprepared(f"{source / name}: is missing; --cifar is the folder that holds cifar-10-batches-py")
        raw = (source / name).read_bytes()
        if hashlib.md5(raw).hexdigest() != _OFFICIAL.get(name) and len(raw) > 30_000_000:
            raise Unprepared(f"{source / name}: is not CIFAR-10's; its md5 is another one")
        if name == "batches.meta":
            (folder / name).write_bytes(raw)
            continue
        packed = packing.pack_images(raw)
        if packing.unpack_images(packed) != raw:
            raise Unprepared(f"{source / name}: does not come out as it went in")
        (folder / f"{name}.pack").write_bytes(packed)


def drawn_cifar(root: Path) -> Path:
    """Writes a few drawn images in CIFAR-10's format, for a dry run."""
    folder, draw = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in BATCHES:
        pixels = draw.integers(0, 256, (200, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [n % 10 for n in range(200)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [str(n).encode() for n in range(10)]}))
    return root


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unprepared(f"pip {words[0]} failed: {done.stderr.strip()[-500:]}")


def _listed() -> list[str]:
    """Every file that travels by itself: tracked, or untracked and not ignored."""
    return _output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")[:-1]


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip("\n")
