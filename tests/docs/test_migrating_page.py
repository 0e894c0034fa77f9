"""The page for people who come from another library: our side of every pair runs, and its names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tiny_data import tiny_root, write_cifar10, write_folders  # noqa: F401  # the first is a fixture

from sslcli.config.merge import read_config
from sslcli.config.options import parse_options
from sslcli.config.resolve import resolve
from sslcli.plugins import find, load

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text(encoding="utf-8")
#: What makes the page's program small.
SMALLER = {
    "epochs=100": "epochs=1, max_steps=1",
    "epochs=10,": "epochs=1, max_steps=1,",
    "batch_size=256": "batch_size=8",
    '"size": 224': '"size": 32',
    '"warmup_epochs": 10': '"warmup_epochs": 0',
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_pages_program_runs(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    write_cifar10(tiny_root)
    write_folders(tiny_root.parent / "my_data_dir")
    monkeypatch.chdir(tiny_root.parent)
    program = "\n".join(blocks("python"))
    for written, small in SMALLER.items():
        assert written in program
        program = program.replace(written, small)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(program, "docs/migrating.md", "exec"), names)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["from-ak-ssl", "from-lightly", "my_experiment"]
    assert Path("resnet18.safetensors").is_file()


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_config_resolves(block: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(block, encoding="utf-8")
    config = resolve(read_config(path, []))
    assert config.training.batch_size == 256


@pytest.mark.parametrize("command", re.findall(r"`(ssl eval RUN [^`]*)`", PAGE))
def test_every_evaluation_takes_its_options(command: str) -> None:
    words = shlex.split(command)
    parse_options(load("evaluators", words[4]).Options, words[5:], words[4])


def test_the_table_names_methods_that_exist() -> None:
    table = PAGE[PAGE.index("| method |") : PAGE.index("DINOv2 is not in")].strip()
    ours = {name for row in table.splitlines() for name in re.findall(r"`([^`]*)`", row.split("|")[2])}
    assert len(ours) >= 12
    assert ours <= {plugin.name for plugin in find("methods")}


@pytest.mark.parametrize("names", re.findall(r"presets? ((?:`[a-z0-9_]+`(?:, )?)+)|preset: ([a-z0-9_]+)", PAGE))
def test_every_preset_exists(names: tuple[str, str]) -> None:
    for name in [*re.findall(r"`([^`]*)`", names[0]), *filter(None, [names[1]])]:
        load("augmentations", name)
