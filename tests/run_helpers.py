"""Short runs for tests: their configs, their newest checkpoints, and the command line."""

from __future__ import annotations

import copy
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import TINY
from small_options import method_case, needs_vit
from typer.testing import CliRunner

from sslcli.cli.main import app
from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.runs import files
from sslcli.runs.checkpoint import Checkpoint, list_checkpoints, read_checkpoint
from sslcli.testing.stand_ins import SMALL_VIT


def method_config(case: str, *overrides: str, own_optimizer: bool = False) -> RunConfig:
    """A tiny run of a method with small heads (see `method_case`), perhaps with optimizer and colors of its paper."""
    document = Document(copy.deepcopy(TINY), {(): "test"})
    if own_optimizer:
        del document.data["optimizer"], document.data["schedule"], document.data["views"]
    name, options = method_case(case)
    document.data["method"] = {"name": name, **options}
    if needs_vit(name):  # it has no width and no stem to choose
        document.data["backbone"] = dict(SMALL_VIT)
        overrides = tuple(each for each in overrides if not each.startswith("backbone."))
    apply_overrides(document, list(overrides))
    return resolve(document)


def machine() -> str:
    """What kernels depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"torch {torch.__version__.partition('+')[0]}, {name}, {torch.backends.cpu.get_cpu_capability()}"


def newest(run: Path) -> Checkpoint:
    return read_checkpoint(list_checkpoints(run / "checkpoints")[0])


def assert_same_end(first: Path, second: Path) -> None:
    """Every tensor and number in the newest checkpoints of two runs is equal, and they are of the same step."""
    a, b = newest(first), newest(second)
    assert a.step == b.step
    for key in ("numbers", "scaler"):
        assert a.document[key] == b.document[key]
    assert a.tensors.keys() == b.tensors.keys()
    assert [name for name, tensor in a.tensors.items() if not torch.equal(tensor, b.tensors[name])] == []


def poison(path: Path, name: str, value: float) -> None:
    """Sets one value of a tensor in a file as an earlier version could have written it: its hashes are right."""
    tensors, document = files.read(path)
    tensors[name].view(-1)[0] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "first_non_finite", lambda tensors: None)
        files.write(path, tensors, document, document.get("plain"))


@contextmanager
def full_disk(most: int = 0) -> Iterator[None]:
    """Lets the system refuse whatever makes a file larger than so many bytes, whichever library writes it: what fits is
    written, as on a disk that fills. Folders and empty files can be made."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # Python keeps a file that was cut, for every later process
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ssl(*arguments: object) -> tuple[int, str, str]:
    """Runs a command in this process; returns exit code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def done(*arguments: object) -> tuple[str, str]:
    """Runs a command that must succeed; returns stdout and stderr."""
    code, out, err = ssl(*arguments)
    assert code == 0, err
    return out, err


def refused(*arguments: object, lines: int = 1, code: int | None = 2) -> str:
    """Runs a command that must fail with that many error lines and nothing on stdout; returns the lines.

    `code` None: with 1 or 2.
    """
    found, out, err = ssl(*arguments)
    assert (found if code is not None or found not in (1, 2) else None, out) == (code, ""), err
    assert len(err.splitlines()) == lines, err
    assert all(line.startswith("ssl: ") for line in err.splitlines())
    return err.strip()
