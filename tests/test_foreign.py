"""Plugins that print, exit or interrupt, and files of the working directory that are called like modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from plugin_helpers import BELL, CALLBACK, Install
from run_helpers import refused, ssl

from sslcli import plugins
from sslcli.contracts.errors import PluginError
from sslcli.foreign import CtrlC, ctrl_c_known, failures, only_results, show
from sslcli.plugins import register_file

ENDS = {
    "import sys; sys.exit(0)": "SystemExit: 0",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit('done')": "GeneratorExit: done",
    "raise type('Mine', (BaseException,), {})('own')": "Mine: own",
    "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})": "Mute",
    "f = lambda: f()\nf()": "RecursionError: maximum recursion depth exceeded",
}


@pytest.mark.parametrize("source", ENDS)
def test_however_a_package_ends_its_import_only_its_own_name_fails(install: Install, source: str) -> None:
    install("brittle", "[sslcli.callbacks]\nbad = broken:Bell\n", {"broken": source})
    said = refused("list", "callbacks", "bad")
    assert said.startswith(f"ssl: callback 'bad' of brittle 1.0 (broken:Bell) cannot be loaded: {ENDS[source]}")
    assert ssl("list", "callbacks")[0] == 0


def test_a_real_ctrl_c_stays_one() -> None:
    with pytest.raises(CtrlC), failures("a plugin"):
        os.kill(os.getpid(), signal.SIGINT)
    with ctrl_c_known(), pytest.raises(CtrlC), failures("a plugin"):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(PluginError, match=r"^a plugin: KeyboardInterrupt$"), failures("a plugin"):
        raise KeyboardInterrupt


NOISY = f"""
import sys
print("noise at import")
sys.__stdout__.write("")
{CALLBACK}
class Options(Bell.Options):
    level: int = 1
    \"\"\"How loud.\"\"\"
Bell.Options = Options
"""


def test_what_a_plugin_prints_is_not_among_the_results(install: Install, tmp_path: Path) -> None:
    install("noisy", BELL, {"bells": NOISY})
    code, out, err = ssl("list", "callbacks", "bell", "--json")
    assert code == 0
    assert json.loads(out)["options"][0]["name"] == "level"
    assert err == "noise at import\n"
    (tmp_path / "loud.py").write_text(NOISY)
    assert json.loads(ssl("list", "callbacks", "--json", "--plugin", tmp_path / "loud.py")[1])


def test_results_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    with only_results():
        print("noise")
        with only_results():
            show("inner")
        show("result")
    print("after")
    assert capsys.readouterr() == ("inner\nresult\nafter\n", "noise\n")


METHOD = """
import sys
from pydantic import field_validator
from sslcli.methods.simclr import SimCLR, SimCLROptions

class OwnOptions(SimCLROptions):
    @field_validator("temperature")
    @classmethod
    def check(cls, value):
        if value == 0.5:
            raise KeyboardInterrupt
        return value

class Ends(SimCLR):
    Options = OwnOptions

    def __init__(self, *arguments):
        sys.exit(0)
"""


@pytest.mark.parametrize(
    ("temperature", "said"),
    [
        ("0.5", "mine.py:11 (check) wanted to end the program, by KeyboardInterrupt: "),
        ("0.1", "mine.py:18 (__init__) wanted to end the program, by sys.exit(0): "),
    ],
)
def test_a_plugin_that_ends_the_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_registered", [])
    (tmp_path / "mine.py").write_text(METHOD)
    words = ["method=ends", f"method.temperature={temperature}", "data={name: shapes, count: 32, size: 16}"]
    words += ["backbone={name: resnet18, width: 4}", "training.epochs=1", "training.compile=none"]
    assert said in refused("train", *words, "--plugin", "mine.py", "--quiet", code=1)
    assert [each.name for each in tmp_path.iterdir() if each.name != "mine.py"] == []


def test_a_plugin_file_that_is_interrupted_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    before = {*sys.modules}
    with pytest.raises(PluginError, match=r"mine\.py: KeyboardInterrupt$"):
        register_file(tmp_path / "mine.py")
    assert {*sys.modules} == before


WRITES = """
import os, subprocess, sys
print("print")
os.write(1, b"fd 1\\n")
sys.__stdout__.write("std\\n")
sys.__stdout__.flush()
subprocess.run([sys.executable, "-c", "import multiprocessing, yaml; print('child')"], check=True)
raise KeyboardInterrupt
"""


def test_nothing_of_the_working_directory_is_imported_and_stdout_is_for_results(tmp_path: Path) -> None:
    here, site = tmp_path / "here", tmp_path / "site"
    info = (here / "evil-1.0.dist-info", site / "noisy-1.0.dist-info")
    for folder, module in zip(info, ("evil", "noisy"), strict=True):
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[sslcli.callbacks]\n{module} = {module}:X\n")
    for module in ("logging", "typing", "json", "yaml", "typer", "torch", "evil", "sitecustomize", "multiprocessing"):
        (here / f"{module}.py").write_text("open('ran', 'a').write(__name__)\n")
    # What it writes comes from Python, from C, and from a child process; which imports what this one does not.
    (site / "noisy.py").write_text(WRITES)
    command = [sys.executable, "-m", "sslcli", "list", "callbacks"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    options = {"cwd": here, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    found = subprocess.run([*command, "--json"], **options)
    names = [row["name"] for row in json.loads(found.stdout)]
    assert "noisy" in names
    assert "evil" not in names
    failed = subprocess.run([*command, "noisy"], **options)
    assert (failed.returncode, failed.stdout) == (2, "")
    noise, said = failed.stderr.splitlines()[:-1], failed.stderr.splitlines()[-1]
    assert sorted(noise) == ["child", "fd 1", "print", "std"]
    assert said == "ssl: callback 'noisy' of noisy 1.0 (noisy:X) cannot be loaded: KeyboardInterrupt"
    assert not (here / "ran").exists()


def test_ctrl_c_when_all_is_done_prints_no_traceback() -> None:
    program = (
        "import atexit, os, signal, sys\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"  # what libraries clean up takes a while
        "sys.argv = ['ssl', '--version']\n"
        "from sslcli.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_processes_of_a_group_import_nothing_of_the_working_directory_and_show_results_once(tmp_path: Path) -> None:
    for module in ("logging", "json", "yaml", "torch", "sslcli", "multiprocessing", "pickle"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'a').write(__name__)\n")
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(TINY))
    program = "from sslcli.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", program, "train", "tiny.yml", "training.epochs=1", "--devices", "2"]
    done = subprocess.run([*command, "--output", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ssl", "eval"], ["ssl", "export"], ["python", "-c"], ["ssl", "train"]
    ]  # fmt: skip
    assert not (tmp_path / "ran").exists()
