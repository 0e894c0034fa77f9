"""torch's cache of compiled code: damaged, locked, not ours, not writable; and what is done when it fails."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY
from torch import nn
from torch._inductor.runtime.cache_dir_utils import cache_dir

from sslcli.contracts.errors import SslError
from sslcli.training import compiler
from sslcli.training.compiler import compile_module, failures_reported, in_one_line, is_of_files, prepare_cache

LIBRARY = Path(torch.__file__).parent / "lib" / "libshm.so"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    (folder / "ab").mkdir(parents=True)
    (folder / "locks").mkdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return folder


def test_what_a_killed_process_left_is_removed_and_nothing_else(cache: Path, messages: list[str]) -> None:
    whole = LIBRARY.read_bytes()
    good = {"a.main.so": whole, "b.so": b"not ELF at all", "c.py": b"x = 1", "d.lock": b"", "e": b""}
    bad = {"f.main.so": b"", "g.so": whole[: len(whole) // 2], "h.so": whole[:40], "i.py": b"", "j.so": bytes(4096)}
    for name, content in (good | bad).items():
        (cache / "ab" / name).write_bytes(content)
    with (cache / "locks" / "k.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process is just linking it
        (cache / "ab" / "k.main.so").touch()
        (cache / "locks" / "f.lock").touch()  # of a dead one
        prepare_cache()
    assert {path.name for path in (cache / "ab").iterdir()} == {*good, "k.main.so"}
    assert messages == [
        f"warning: 5 unfinished files removed from torch's cache of compiled code, {cache}: compiled again"
    ]
    prepare_cache()
    assert messages[1:] == ["warning: 1 unfinished file removed" + messages[0].partition("files removed")[2]]


@pytest.mark.parametrize("kind", ["a file", "another user's", "full", "read-only"])
def test_a_cache_that_cannot_be_used_is_replaced_for_this_process(
    cache: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str], kind: str
) -> None:
    reason = {
        "a file": "File exists", "another user's": "is another user's", "full": "No space left on device",
        "read-only": "Read-only file system",
    }[kind]  # fmt: skip
    if kind == "a file":
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache / "file"))
        (cache / "file").touch()
    elif kind == "another user's":
        monkeypatch.setattr(tempfile, "tempdir", str(cache))
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        default = Path(cache_dir())
        monkeypatch.setattr(os, "stat", _owned(os.stat, default))
    else:

        def refuse(**options: object) -> None:
            raise OSError(28 if kind == "full" else 30, reason)

        monkeypatch.setattr(compiler.tempfile, "TemporaryFile", refuse)
    before = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    prepare_cache()
    own = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    said = f"torch's cache of compiled code: {before} cannot be used ({reason}); using {own} for this run"
    assert messages == [f"warning: {said}"]
    assert Path(own).is_dir()
    assert Path(own).stat().st_mode & 0o077 == 0


def _owned(stat, folder: Path):
    """`os.stat`, for which the folder is not root's."""

    def changed(path, **options):
        found = stat(path, **options)
        return os.stat_result([*found[:4], 4321, *found[5:]]) if str(path) == str(folder) else found

    return changed


def test_a_cache_that_was_set_may_be_another_users(
    cache: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setattr(os, "stat", _owned(os.stat, cache))
    prepare_cache()
    assert (os.environ["TORCHINDUCTOR_CACHE_DIR"], messages) == (str(cache), [])


def test_one_process_of_a_machine_looks_at_files_and_at_so_many(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        (cache / "ab" / f"{number}.py").touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    prepare_cache()
    assert len(list(cache.rglob("*.py"))) == 9
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(compiler, "_MOST_FILES", 4)
    prepare_cache()
    assert len(list(cache.rglob("*.py"))) == 5


class Failure(torch._dynamo.exc.TorchDynamoException):
    """As torch's own, with what the backend raised."""

    def __init__(self, inner: Exception) -> None:
        super().__init__(
            f"backend='inductor' raised:\n{inner}\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace"
        )
        self.inner_exception = inner


@pytest.mark.parametrize("count", [1, math.inf])
def test_code_of_a_broken_entry_is_compiled_again_elsewhere_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str], count: float
) -> None:
    failed: list[str] = []
    calls: list[str] = []

    def compile_(function, **options):
        def call(*inputs):
            calls.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            if len(calls) <= count:
                raise Failure(ImportError("x.so: file too short"))
            return function(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    layer = nn.Linear(2, 2)
    compile_module(layer, failed.append, None)
    assert layer(torch.ones(1, 2)).shape == layer(torch.ones(1, 2)).shape == (1, 2)
    assert calls[0] == str(cache)
    assert str(cache) not in calls[1:]
    said = "the compiler failed (Failure: backend='inductor' raised: x.so: file too short)"
    assert messages[0].startswith(f"warning: torch's cache of compiled code: {said}; using ")
    assert (len(messages), failed) == (1, [] if count == 1 else [said])
    assert (layer._compiled_call_impl is None) == (count != 1)


def test_only_the_compilers_own_failures_are_its(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_of_files(Failure(OSError("x")))
    assert is_of_files(Failure(RuntimeError("g++: error writing to /tmp/x.s: No space left on device")))
    assert not is_of_files(Failure(RuntimeError("ld: cannot find -lgomp")))
    said = r"^the compiler failed \(Failure: .*\); set training.compile=none$"
    with pytest.raises(SslError, match=said), failures_reported():
        raise Failure(RuntimeError("no such operator"))
    with pytest.raises(ZeroDivisionError), failures_reported():
        raise ZeroDivisionError
    assert in_one_line(RuntimeError("a\n b")) == "the compiler failed (RuntimeError: a b)"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_after_a_kill_while_compiling_is_compiled_and_says_one_line(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [sys.executable, "-m", "sslcli", "train", "tiny.yaml", "training.compile=views", "training.max_steps=2"]
    command.append("--output")

    def run(name: str) -> list[str]:
        done = subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) < 16, done.stderr
        return [line for line in done.stderr.splitlines() if "warning" in line]

    assert run("first") == []
    damaged = sorted(cache.rglob("*.so"))
    for number, path in enumerate(damaged):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if number % 2 else b"")
    for path in (cache / "fxgraph").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    (said,) = run("second")
    assert said.startswith(f"warning: {len(damaged)} unfinished files removed from torch's cache")
    assert run("third") == []
