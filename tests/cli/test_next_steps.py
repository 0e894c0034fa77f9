"""The commands at the end of a run: each one line, and each works in a shell whatever the directory is called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cli_helpers import folder  # noqa: F401  # a fixture
from run_helpers import done

from sslcli.cli.next_steps import next_steps, path_word, shell_word

# ruff: noqa: F811

ODD = ["plain", "two words", "it's", '"quoted"', "-rf", "~nobody", "a\nb", "end\n", "tab\t%d\\n", "\x1b[31mred",
       "$HOME;`x`!", "ünïcode", os.fsdecode(b"latin-\xe9")]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_path_reaches_a_program_as_it_is(name: str, shell: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    word = path_word(Path(name))
    assert word.isprintable()
    shown = subprocess.run([shell, "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    found = Path(os.fsdecode(shown))
    assert tmp_path / found == tmp_path / name
    assert not os.fsdecode(shown).startswith(("-", "~"))


def test_an_override_reaches_a_program_as_it_is() -> None:
    for text in ("data.root=/a b", "views={preset: simclr}", "x='1'", "-q", ""):
        shown = subprocess.run(["sh", "-c", f"printf %s {shell_word(text)}"], capture_output=True, check=True).stdout
        assert shown.decode() == text


def test_a_run_without_labels_is_measured_without_and_plugins_are_passed_on() -> None:
    longer, plugins = ["training.epochs=4"], [Path("my method.py")]
    steps = next_steps(Path("runs/a b"), evaluator="quality", longer=longer, plugins=plugins)
    assert steps == [
        "ssl eval 'runs/a b' --method quality --plugin 'my method.py'",
        "ssl export backbone 'runs/a b' --output 'a b.safetensors' --plugin 'my method.py'",
        "ssl train 'runs/a b' training.epochs=4 --resume --plugin 'my method.py'",
    ]


@pytest.mark.slow
def test_the_commands_of_a_run_with_an_odd_name_work(folder: Path) -> None:
    out, _ = done("train", "c.yaml", "training.max_steps=1", "--output", '-it\'s\na "run"')
    evaluate, export, program, longer = out.splitlines()
    assert "training.max_steps=null --resume" in longer
    assert evaluate.startswith("ssl eval ")
    script = f'ssl() {{ python -m sslcli "$@"; }}; {export} && {program} && {longer}'
    ran = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 0, ran.stderr
    assert "BackboneSpec(" in ran.stdout
    assert "from step 1 of 3" in ran.stderr
