"""A run without a config file: data by its folder, paths as they are, and options by their last name alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import sslcli
from sslcli.config.resolve import RunConfig, load_config
from sslcli.contracts.errors import ConfigError, UserError

SMALL = ["method=simclr", "views.size=32", "backbone={name: resnet18, stem: small, width: 4}"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def resolved(*overrides: str, file: str = "") -> RunConfig:
    if not file:
        return load_config(None, [*SMALL, *overrides])
    Path("c.yaml").write_text(file)
    return load_config(Path("c.yaml"), list(overrides))


def problem(*overrides: str, file: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*overrides, file=file)
    return str(caught.value)


@pytest.mark.parametrize("name", ["photos", "./photos", "~/photos", "cifar11"])
def test_a_folder_is_the_dataset_images(name: str) -> None:
    Path(name).expanduser().mkdir(parents=True)
    for config in (
        resolved(f"data={name}"),
        resolved(f"data.root={name}"),
        resolved(f"data={{name: {name}}}"),
        resolved(file=f"method: simclr\ndata: {name}\n"),
        resolved(f"data={name}", file="extends: quickstart\n"),
    ):
        assert config.data.name == "images"
        assert config.data.options.root == Path(name)
    assert resolved(f"data={name}", "data.limit=3").data.options.limit == 3


def test_the_name_of_a_dataset_comes_before_a_folder() -> None:
    Path("shapes").mkdir()
    assert resolved("data=shapes").data.name == "shapes"
    assert resolved("data=./shapes").data.name == "images"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "command line: data: missing; write `data=FOLDER` with a folder of images, or another of `ssl list data"),
        (
            ["data=photo"],
            "command line: data.name: unknown dataset 'photo'; give the folder that holds the images, or ",
        ),
        (["data=cifar11"], "command line: data.name: unknown dataset 'cifar11'; did you mean cifar10 or cifar100?"),
        (["data=~/gone"], "command line: data.name: no such folder: "),
        (["data=./file"], "command line: data.name: ./file is a file; give the folder that holds the images"),
        (["data.limit=3"], "command line: data: should be a name, or a mapping with `name`; see `ssl list datasets`"),
    ],
)
def test_what_is_neither_is_one_line(overrides: list[str], message: str) -> None:
    Path("file").touch()
    assert problem(*overrides).startswith(message)
    assert "\n" not in problem(*overrides)


def test_a_missing_method_says_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"^command line: method: missing; write `method=simclr`, or another of"):
        load_config(None, ["data=shapes"])


@pytest.mark.parametrize(
    "name", ["a#b", "photos #2", "x: y", "@x", "[old] photos", "{new}", "*x", "&x", "!x", "a, b", "% 1", "2020", "- a"]
)
def test_a_path_needs_no_quotes(name: str) -> None:
    Path(name).mkdir()
    assert resolved(f"data={name}").data.options.root == Path(name)
    for data in ("data=images", "data={name: folder}", "data.limit=2"):
        found = resolved(data, f"data.root={name}") if data != "data.limit=2" else resolved(f"data.root={name}", data)
        assert found.data.options.root == Path(name)
    config = resolved("data=shapes", f"output={name}", f"backbone.weights={name}/w.pth")
    assert (config.output, config.backbone.options.weights) == (Path(name), Path(name) / "w.pth")
    assert resolved("data=images", f"data.cache_dir={name}").data.options.cache_dir == Path(name)


def test_a_path_may_be_quoted_and_reset() -> None:
    assert resolved("data=images", "data.root='a: b'").data.options.root == Path("a: b")
    assert resolved("data=images", 'data.root="a #b"').data.options.root == Path("a #b")
    assert resolved("data=images", "data.root=x", "data.root=null").data.options.root == Path("data")
    assert resolved("data=images", "data.cache_dir=x", "data.cache_dir=null").data.options.cache_dir is None
    assert resolved("data=images", "data.root=~").data.options.root == Path("~")


def test_other_values_are_still_yaml() -> None:
    assert "command line: training.epochs: not valid YAML: " in problem("data=shapes", "training.epochs=[1")
    assert resolved("data=shapes", "data={name: shapes, count: 3}").data.options.count == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=3", "command line: epochs: unknown; did you mean training.epochs=3?"),
        ("lr=3", "command line: lr: unknown; did you mean optimizer.lr=3 or callbacks.online_probe.lr=3?"),
        ("size=24", "command line: size: unknown; did you mean data.size=24 or views.size=24?"),
        ("hidden_dim=8", "command line: hidden_dim: unknown; did you mean method.projector.hidden_dim=8?"),
        ("epoch=3", "command line: epoch: unknown; did you mean training.epochs=3?"),
        ("learning-rate=3", "command line: learning-rate: unknown; did you mean optimizer.lr=3 or "),
        ("arch=resnet50", "command line: arch: unknown; did you mean backbone=resnet50?"),
        ("optimiser.lr=3", "command line: optimiser: unknown section; did you mean optimizer?"),
        ("frobnicate=3", "command line: frobnicate: unknown section; available: backbone, callbacks, "),
    ],
)
def test_an_option_by_its_last_name_is_answered_by_the_option_meant(override: str, message: str) -> None:
    assert problem("data=shapes", override).startswith(message)


def test_in_a_file_and_in_python_the_option_meant_is_written_as_there() -> None:
    found = problem(file="method: simclr\ndata: shapes\nepochs: 3\n")
    assert found == "c.yaml:3: epochs: unknown; did you mean training.epochs?"
    with pytest.raises(
        UserError, match=r'sslcli\.train: lr: unknown; did you mean overrides=\{"optimizer\.lr": 0\.1\}'
    ):
        sslcli.train("quickstart", lr=0.1)
    with pytest.raises(UserError, match=r"sslcli\.train: data: missing; write `data=\"FOLDER\"`"):
        sslcli.train(method="simclr")


@pytest.mark.parametrize(
    ("file", "overrides", "epochs"),
    [
        ("method: simclr\ndata: shapes\ntraining: {epochs: 5}\n", [], 0.5),  # the method's own
        ("extends: quickstart\nschedule: {warmup_epochs: 10}\ntraining: {epochs: 50}\n", ["training.epochs=5"], 0.5),
        ("extends: quickstart\n", [], 1),
    ],
)
def test_the_warm_up_of_a_shortened_run_is_a_tenth_of_it(
    file: str, overrides: list[str], epochs: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sslcli"):
        assert resolved(*overrides, file=file).schedule.options.warmup_epochs == epochs
    line = "schedule.warmup_epochs: 0.5 instead of 10: the whole run has 5 epochs"
    assert caplog.messages == ([line] if epochs == 0.5 else [])


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("extends: quickstart\nschedule: {warmup_epochs: 10}\ntraining: {epochs: 5}\n", []),
        ("extends: quickstart\n", ["schedule.warmup_epochs=15"]),
    ],
)
def test_a_warm_up_that_was_asked_for_stays(file: str, overrides: list[str]) -> None:
    found = resolved(*overrides, file=file)
    assert found.schedule.options.warmup_epochs > found.training.epochs


def test_python_takes_a_folder_as_name_and_as_path(tmp_path: Path) -> None:
    from sslcli.api.objects import Objects

    def section(data: Any) -> dict[str, Any]:
        plain: dict[str, Any] = Objects().sections({"data": data})["data"]
        return plain

    assert section(tmp_path) == {"name": "images", "root": str(tmp_path)}
    assert section({"name": tmp_path, "limit": 3}) == {"name": "images", "root": str(tmp_path), "limit": 3}
    assert section("~/photos") == {"name": "~/photos"}
