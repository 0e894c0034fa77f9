"""Commands whose results find no room: one line, nothing half-written, and what was there is as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_helpers import folder, run, trained  # noqa: F401  # fixtures
from run_helpers import contents, done, full_disk, ssl

from sslcli.cli.main import guarded
from sslcli.foreign import show

# ruff: noqa: F811

WHY = "cannot be written (File too large); make room there"


@pytest.mark.usefixtures("pictures")
def test_an_evaluation_is_shown_and_the_earlier_one_stays_what_it_was(run: Path) -> None:
    out, _ = done("eval", run, "--method", "linear", "epochs=1")
    before = contents(run)
    assert {path.name for path in before} >= {"linear.json", "linear.safetensors"}
    for room in (0, 30_000):  # for no file, and for the numbers alone
        with full_disk(room):
            again, err = done("eval", run, "--method", "linear", "epochs=1")
        assert again == out
        lines = [line for line in err.splitlines() if WHY in line]
        assert lines
        assert all(line.startswith("warning: run/eval/linear") for line in lines)
        assert not list(run.rglob("*.tmp"))
        if room == 0:
            assert contents(run) == before
            assert "results shown but not saved: run; use --output FILE to save them" in err
    with full_disk():
        code, shown, err = ssl("eval", run, "--method", "linear", "epochs=1", "--output", "x.json")
    assert (code, shown) == (1, out)
    assert f"warning: x.json: {WHY}" in err
    assert not Path("x.json").exists()


@pytest.mark.parametrize(
    ("name", "file", "refused"),
    [
        ("backbone", "x.safetensors", ""), ("features", "x.safetensors", ""), ("features", "x.npy", "x.json"),
        ("torch-export", "x.pt2", ""),
        pytest.param("projector", "x.pt2", "", marks=pytest.mark.slow),
        pytest.param("onnx", "x.onnx", "", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_export_is_one_line_and_the_file_that_was_there_stays(run: Path, name: str, file: str, refused: str) -> None:
    if name == "onnx":
        pytest.importorskip("onnx")
    Path(file).write_text("mine")
    before = contents(Path())
    with full_disk(5000):
        code, out, err = ssl("export", name, run, "--output", file, "--force")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"ssl: {refused or file}: {WHY} or choose another path"
    assert contents(Path()) == before


@pytest.mark.parametrize("file", ["x.safetensors", pytest.param("x.pt2", marks=pytest.mark.slow)])
def test_an_exported_classifier_too(run: Path, file: str) -> None:
    done("eval", run, "--method", "linear", "epochs=1")
    with full_disk():
        code, _, err = ssl("export", "classifier", run, "--output", file)
    assert (code, err.splitlines()[-1]) == (2, f"ssl: {file}: {WHY} or choose another path")
    assert not Path(file).exists()


@pytest.mark.parametrize("text", ["a result", "x" * 100_000])  # more than is held back
def test_a_stdout_that_takes_no_more_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        show(text)
        return 0

    with open("/dev/full", "w") as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(typer.Exit) as raised:
            guarded(command)()
        full.flush()  # what is left is let go
    assert raised.value.exit_code == 1
    assert capsys.readouterr().err == "ssl: stdout: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["list", "--schema"], ["list"], ["runs", "--json"], ["init", "simclr", "--data", "shapes"]]
)
def test_printed_results_on_a_full_disk_are_one_line(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sslcli", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ssl: stdout: No space left on device"
    assert "Exception" not in done.stderr
