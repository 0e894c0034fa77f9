"""Words that are no usual ones: longer than a file's name can be, of users or options that do not exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import folder as folder
from cli_helpers import left_behind
from conftest import ConfigMaker
from plugin_helpers import BELL, Install
from run_helpers import done, refused

from sslcli.contracts.errors import ConfigError

LONG = "x" * 5000
BELLS = """
from sslcli.contracts.callback import Callback
from sslcli.contracts.options import Options

class Level(Options):
    level: int = 1
    \"\"\"How loud.\"\"\"

class Bell(Callback):
    \"\"\"Rings.\"\"\"
    Options = Level
"""


@pytest.mark.parametrize(
    "words",
    [
        ["train", LONG], ["train", f"method={LONG}", "data=shapes"], ["train", "c.yaml", f"data={LONG}"],
        ["train", "c.yaml", "data.name=images", f"data.root={LONG}"], ["train", "c.yaml", f"/{LONG}=1"],
        ["train", "c.yaml", "--plugin", LONG], ["train", "c.yaml", "--output", LONG], ["bench", f"{LONG}.yaml"],
        ["train", "c.yaml", f"backbone={{name: vit_tiny, weights: {LONG}}}"], ["train", LONG, "--resume"],
        ["eval", LONG], ["eval", "resnet18", "data=images", f"data.root={LONG}"], ["export", "backbone", LONG],
        ["export", LONG], ["init", LONG, "--data", "."], ["init", "simclr", "--data", LONG], ["runs", LONG],
        ["list", "methods", LONG], ["list", LONG],
    ],
    ids=lambda words: "-".join(word[:9] for word in words),
)  # fmt: skip
def test_a_word_longer_than_a_name_of_a_file_is_one_line(folder: Path, words: list[str]) -> None:
    said = refused(*words, code=None)
    assert said.count("x" * 40) >= 1
    assert left_behind(folder) == set()


def test_a_long_override_is_an_override(folder: Path) -> None:
    values = ", ".join(["0.5"] * 600)
    assert refused("train", "c.yaml", f"optimizer.lr=[{values}]").startswith(
        "ssl: command line: optimizer.lr: should be"
    )


@pytest.mark.parametrize("config", [["--config", "c.yaml"], ["--config=c.yaml"], ["--config"]])
def test_a_config_is_not_an_option(folder: Path, config: list[str]) -> None:
    what = "CONFIG" if config == ["--config"] else "c.yaml"
    for command in ("train", "bench"):
        said = refused(command, *config)
        assert said == f"ssl: --config: no such option; write {what} without it"


USER = "~nobody-of-this-name/x"


@pytest.mark.parametrize(
    "words",
    [
        ["train", USER], ["train", f"{USER}/c.yaml", "--resume"], ["train", "c.yaml", "--output", USER],
        ["train", "c.yaml", f"output={USER}"], ["train", "c.yaml", "--plugin", USER],
        ["train", "c.yaml", f"data={USER}"],
        ["train", "method=simclr", f"data.root={USER}"], ["train", "c.yaml", f"data={{name: cifar10, root: {USER}}}"],
        ["train", "c.yaml", f"data={{name: images, root: ., cache: disk, cache_dir: {USER}}}"],
        ["train", "c.yaml", f"backbone.weights={USER}"], ["train", "below.yaml"],
        ["eval", USER], ["eval", "resnet18", "data=images", f"data.root={USER}"],
        ["eval", "resnet18", "--output", USER],
        ["export", "backbone", USER], ["init", "simclr", "--data", USER], ["bench", "c.yaml", "--output", USER],
        ["runs", USER], ["list", "--plugin", USER],
    ],
    ids=lambda words: "-".join(word[:14] for word in words),
)  # fmt: skip
def test_the_folder_of_an_unknown_user_is_one_line(folder: Path, words: list[str]) -> None:
    (folder / "below.yaml").write_text(f"extends: {USER}\n")
    assert "~nobody-of-this-name" in refused(*words, code=None)
    assert left_behind(folder) == {"below.yaml"}


def test_an_override_can_name_the_package_of_a_callback(install: Install, tiny: ConfigMaker) -> None:
    install("my-bells", BELL, {"bells": BELLS})
    assert tiny("callbacks.my-bells:bell.level=2").callbacks["my-bells:bell"].options.plain() == {"level": 2}
    with pytest.raises(ConfigError, match=r"callbacks\.my-bells:bell\.levle: unknown option of .*did you mean level"):
        tiny("callbacks.my-bells:bell.levle=2")
    assert json.loads(done("list", "callbacks", "my-bells:bell", "--json")[0])["options"][0]["name"] == "level"
