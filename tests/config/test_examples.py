"""Example configs: found by name, in a clone and in a wheel, and named in messages."""

from __future__ import annotations

import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from run_helpers import done, refused

from sslcli.config import examples
from sslcli.config.resolve import load_config
from sslcli.contracts.errors import ConfigError, UserError

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT / "examples/configs") for path in (ROOT / "examples/configs").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "cifar10/simclr", "cifar10/simclr.yaml"])
def test_an_example_is_found_by_its_name_in_any_folder(name: str) -> None:
    path = f"examples/configs/{name.removesuffix('.yaml')}.yaml"
    assert load_config(Path(name), []) == load_config(ROOT / path, [])


def test_every_example_has_a_name_and_a_line_of_meaning() -> None:
    assert sorted(examples.names()) == sorted(path.with_suffix("").as_posix() for path in FILES)
    rows = dict(line.split(maxsplit=1) for line in done("list", "configs")[0].splitlines())
    assert list(rows) == examples.names()
    assert rows["quickstart"].startswith("SimCLR on the built-in `shapes` images: no download")
    assert all(len(line) <= 100 for line in rows.values())


def test_an_existing_file_wins_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    assert load_config(Path("quickstart"), []).method.name == "simclr"
    (tmp_path / "quickstart.yaml").write_text("method: byol\ndata: shapes\n")
    assert load_config(Path("quickstart.yaml"), []).method.name == "byol"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstat", "quickstat: no such file; did you mean quickstart?; see `ssl list configs`"),
        ("mine.yaml", "mine.yaml: no such file, and no example config of this name; see `ssl list configs`"),
    ],
)
def test_an_unknown_name_is_one_line(name: str, message: str) -> None:
    for command in ("train", "bench"):
        assert refused(command, name) == f"ssl: {message}"


def test_messages_name_an_example_and_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^example quickstart\.yaml:\d+: backbone: .*not 2:"):
        load_config(Path("quickstart"), ["views.size=2"])


def test_a_file_can_extend_an_example(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nmethod: {temperature: 0.3}\n")
    assert load_config(Path("mine.yaml"), []).method.options.temperature == 0.3
    (tmp_path / "mine.yaml").write_text("extends: quick\n")
    with pytest.raises(UserError, match=r"mine\.yaml:1: extends: no such file: quick"):
        load_config(Path("mine.yaml"), [])


def test_the_wheel_has_every_example_where_the_package_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert {f"sslcli/configs/{path.as_posix()}" for path in FILES} <= {*archive.namelist()}
        archive.extractall(tmp_path / "installed", [name for name in archive.namelist() if name.endswith(".yaml")])
    monkeypatch.setattr(examples, "_PACKAGE", tmp_path / "installed" / "sslcli")
    assert examples.locate(Path("cifar10/byol")).is_relative_to(tmp_path)
    sdist = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "/examples" in sdist["include"]  # a wheel is built from it
