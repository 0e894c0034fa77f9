"""Temporary files of dead processes are removed, those of living ones never, whatever the file is called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sslcli import storage
from sslcli.runs import files
from sslcli.storage import atomic_path, remove_dead, write_text


def temporary(folder: Path, *, apart: bool = False) -> Path:
    """What this process would write; the block that makes it is never left."""
    context = atomic_path(folder / "f.json", apart=apart)
    made = context.__enter__()
    CONTEXTS.append(context)
    return made.parent if apart else made


CONTEXTS: list[object] = []  # or a collected one would clean up


def of_process(path: Path, process: int, machine: str | None = None) -> Path:
    """Renames a temporary file into one of another process."""
    name = re.sub(r"\.\d+-(\w+)\.", lambda found: f".{process}-{machine or found[1]}.", path.name)
    return path.rename(path.with_name(name))


@pytest.fixture(scope="module")
def dead() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("apart", [False, True])
def test_what_dead_processes_left_goes_with_the_next_write(tmp_path: Path, dead: int, apart: bool) -> None:
    mine = temporary(tmp_path, apart=apart)
    left = of_process(temporary(tmp_path, apart=apart), dead)
    alive = of_process(temporary(tmp_path, apart=apart), os.getppid())
    elsewhere = of_process(temporary(tmp_path, apart=apart), dead, "0123abcd")
    foreign = [tmp_path / name for name in (".f.json.swp", ".x.tmp", "notes.tmp", f".f.json.{dead}.tmp")]
    for path in foreign:
        path.write_text("of another program")
    write_text(tmp_path / "other.json", "{}")
    assert not left.exists()
    assert set(tmp_path.iterdir()) == {mine, alive, elsewhere, *foreign, tmp_path / "other.json"}
    assert remove_dead(tmp_path / "missing") == []


def test_one_of_this_number_from_before_is_dead(tmp_path: Path) -> None:
    left = temporary(tmp_path)
    storage._mine.clear()  # as in a container that was started again
    assert remove_dead(tmp_path) == [left]


def test_under_a_lock_all_temporary_files_of_some_names_go(tmp_path: Path) -> None:
    elsewhere = of_process(temporary(tmp_path), 1, "0123abcd")
    earlier = tmp_path / ".f.json.a1b2c3d4.tmp"  # as earlier versions called them
    other = tmp_path / ".g.json.a1b2c3d4.tmp"
    for path in (earlier, other):
        path.touch()
    assert set(remove_dead(tmp_path, "f.*")) == {elsewhere, earlier}
    assert list(tmp_path.iterdir()) == [other]


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path)
        (path.parent / ".tmpAbCdEf").write_bytes(b"safetensors' own")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", failing)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "f", {"x": torch.ones(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_names_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "名" * 85):
        write_text(tmp_path / name, "text")
        files.write(tmp_path / (name[:-1] + "x"), {"x": torch.ones(1)}, {})
    assert len(list(tmp_path.iterdir())) == 4
