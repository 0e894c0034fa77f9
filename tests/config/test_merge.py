"""`extends` and the command line's overrides: what merges, what replaces, what drops, and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslcli.config.document import Document
from sslcli.config.merge import as_arguments, read_config
from sslcli.contracts.errors import ConfigError

BASE = """
seed: 3
method: {name: simclr, temperature: 0.5, projector: {layers: 2, output_dim: 128}}
optimizer: {name: sgd, lr: 0.1, momentum: 0.8}
views: {preset: simclr, strength: 0.3, size: 32}
callbacks: {knn: {every_epochs: 2}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def extended(folder: Path, text: str, overrides: list[str] | None = None) -> Document:
    (folder / "c.yaml").write_text("extends: base.yaml\n" + text)
    return read_config(folder / "c.yaml", overrides or [])


def overridden(folder: Path, *overrides: str) -> dict[str, Any]:
    return read_config(folder / "base.yaml", list(overrides)).data


def problems(folder: Path, *overrides: str, file: str = "base.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(folder / file, list(overrides))
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


# --- extends


def test_mappings_merge_at_every_depth(folder: Path) -> None:
    data = extended(folder, "method: {projector: {layers: 3}}\nseed: 4\n").data
    assert data["method"] == {"name": "simclr", "temperature": 0.5, "projector": {"layers": 3, "output_dim": 128}}
    assert data["seed"] == 4
    assert "extends" not in data


def test_lists_replace(folder: Path) -> None:
    (folder / "base.yaml").write_text("optimizer: {name: adamw, lr: 1, betas: [0.9, 0.99]}\n")
    assert extended(folder, "optimizer: {betas: [0.5, 0.6]}\n").data["optimizer"]["betas"] == [0.5, 0.6]


def test_a_list_of_views_replaces_a_preset_and_the_other_way_round(folder: Path) -> None:
    assert extended(folder, "views: [{blur: 0.5}]\n").data["views"] == [{"blur": 0.5}]
    (folder / "base.yaml").write_text("views: [{blur: 0.5}]\n")
    assert extended(folder, "views: {preset: simclr}\n").data["views"] == {"preset": "simclr"}


def test_null_takes_a_value_back(folder: Path) -> None:
    data = extended(folder, "optimizer: {momentum: null}\nviews: null\n").data
    assert data["optimizer"]["momentum"] is None
    assert data["views"] is None


def test_another_name_drops_the_options_of_the_old_one(folder: Path) -> None:
    data = extended(folder, "optimizer: {name: adamw, lr: 0.001}\nviews: {preset: byol}\n").data
    assert data["optimizer"] == {"name": "adamw", "lr": 0.001}
    assert data["views"] == {"preset": "byol"}


def test_the_same_name_keeps_the_options(folder: Path) -> None:
    data = extended(folder, "optimizer: {name: sgd, lr: 0.2}\nmethod: simclr\n").data
    assert data["optimizer"] == {"name": "sgd", "lr": 0.2, "momentum": 0.8}
    assert data["method"]["temperature"] == 0.5


def test_a_bare_name_is_short_for_a_mapping_with_it(folder: Path) -> None:
    assert extended(folder, "method: byol\n").data["method"] == {"name": "byol"}


def test_a_name_deeper_in_a_section_is_an_option_like_any_other(folder: Path) -> None:
    (folder / "base.yaml").write_text("method: {name: m, head: {name: a, width: 3}}\n")
    assert extended(folder, "method: {head: {name: b}}\n").data["method"]["head"] == {"name": "b", "width": 3}


def test_a_chain_of_three_is_read_from_its_end(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "middle.yaml").write_text("extends: ../base.yaml\nseed: 5\noptimizer: {lr: 0.3}\n")
    (folder / "top.yaml").write_text("extends: sub/middle.yaml\noptimizer: {momentum: 0.7}\n")
    document = read_config(folder / "top.yaml", [])
    assert document.data["seed"] == 5
    assert document.data["optimizer"] == {"name": "sgd", "lr": 0.3, "momentum": 0.7}
    places = {key: document.origin(("optimizer", key)) for key in ("name", "lr", "momentum")}
    assert places == {
        "name": f"{folder}/sub/../base.yaml:4",
        "lr": f"{folder}/sub/middle.yaml:3",
        "momentum": f"{folder}/top.yaml:2",
    }


def test_a_circle_is_told_with_its_way(folder: Path) -> None:
    (folder / "base.yaml").write_text("extends: other.yaml\n")
    (folder / "other.yaml").write_text("extends: base.yaml\n")
    (problem,) = problems(folder)
    assert problem.endswith("extends itself: base.yaml extends other.yaml extends base.yaml")
    (folder / "base.yaml").write_text("extends: base.yaml\n")
    assert problems(folder) == ["base.yaml: extends itself: base.yaml extends base.yaml"]


def test_a_base_that_is_missing_is_told_where_it_is_named(folder: Path) -> None:
    (folder / "c.yaml").write_text("seed: 1\nextends: gone.yaml\n")
    assert problems(folder, file="c.yaml") == ["c.yaml:2: extends: no such file: gone.yaml"]
    (folder / "c.yaml").write_text("extends: [a.yaml, b.yaml]\n")
    assert problems(folder, file="c.yaml") == ["c.yaml:1: extends: should be the name of one YAML file"]


def test_the_values_of_a_base_are_not_shared_between_two_readings(folder: Path) -> None:
    first = overridden(folder, "method.projector.layers=9")
    assert overridden(folder)["method"]["projector"]["layers"] == 2
    assert first["method"]["projector"]["layers"] == 9


# --- overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=1e-4", 1e-4),
        ("optimizer.lr=on", "on"),
        ("optimizer.lr=", None),
        ("optimizer.lr=null", None),
        ("optimizer.lr=[1, 2]", [1, 2]),
        ("optimizer.lr={a: b}", {"a": "b"}),
        ("optimizer.lr=a=b", "a=b"),
        ("optimizer.lr='1'", "1"),
        ("optimizer.new=1", 1),
    ],
)
def test_the_value_of_an_override_is_yaml(folder: Path, override: str, value: object) -> None:
    key = override.partition("=")[0].rpartition(".")[2]
    assert overridden(folder, override)["optimizer"][key] == value


def test_an_override_makes_sections_that_are_not_there(folder: Path) -> None:
    assert overridden(folder, "training.clip.norm=3")["training"] == {"clip": {"norm": 3}}


def test_later_overrides_win(folder: Path) -> None:
    assert overridden(folder, "seed=1", "seed=2")["seed"] == 2


def test_an_override_reaches_into_a_bare_name(folder: Path) -> None:
    (folder / "base.yaml").write_text("method: simclr\n")
    assert overridden(folder, "method.temperature=0.2")["method"] == {"name": "simclr", "temperature": 0.2}
    assert overridden(folder, "data=shapes", "data.count=64")["data"] == {"name": "shapes", "count": 64}


def test_an_override_of_the_name_drops_the_options(folder: Path) -> None:
    assert overridden(folder, "optimizer=adamw")["optimizer"] == {"name": "adamw"}
    assert overridden(folder, "optimizer.name=adamw", "optimizer.lr=1")["optimizer"] == {"name": "adamw", "lr": 1}
    assert overridden(folder, "views.preset=byol")["views"] == {"preset": "byol"}
    assert overridden(folder, "optimizer={name: sgd, lr: 2}")["optimizer"]["momentum"] == 0.8


def test_elements_of_lists_are_reached_by_index(folder: Path) -> None:
    (folder / "base.yaml").write_text("views: [{blur: 0.1}, {blur: 0.2}]\noptimizer: {betas: [0.9, 0.99]}\n")
    data = overridden(folder, "views.0.blur=0.5", "views.1.size=8", "optimizer.betas.1=0.5")
    assert data["views"] == [{"blur": 0.5}, {"blur": 0.2, "size": 8}]
    assert data["optimizer"]["betas"] == [0.9, 0.5]
    for bad in ("views.2.blur=1", "views.x=1", "views.-1=1", "views.²=1"):
        assert "should be an index from 0 to 1" in problems(folder, bad)[0]
    (folder / "base.yaml").write_text("views: []\n")
    assert problems(folder, "views.0.blur=1") == ["command line: views.0: the list is empty"]


def test_single_views_of_a_preset_are_kept_by_their_index(folder: Path) -> None:
    assert overridden(folder, "views.0.blur=0.5")["views"]["0"] == {"blur": 0.5}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "command line: 'seed': should look like key.path=value (optimizer.lr=0.3)"),
        ("=3", "command line: '=3': should look like key.path=value (optimizer.lr=0.3)"),
        (".lr=3", "command line: '.lr=3': should look like key.path=value (optimizer.lr=0.3)"),
        ("a..b=3", "command line: 'a..b=3': should look like key.path=value (optimizer.lr=0.3)"),
        ("seed.x=3", "command line: seed.x: seed is 3 and has no parts"),
        ("optimizer.lr.x=3", "command line: optimizer.lr.x: optimizer.lr is 0.1 and has no parts"),
        ("extends=other.yaml", "command line: extends: can only be written in a file"),
        ("seed=[1", "command line: seed: not valid YAML: "),
        ("seed=!!python/name:os 1", "command line: seed: the tag !!python/name:os is not supported"),
    ],
)
def test_a_malformed_override_is_one_line(folder: Path, override: str, said: str) -> None:
    (problem,) = problems(folder, override)
    assert problem.startswith(said)


def test_all_malformed_overrides_are_told_at_once(folder: Path) -> None:
    assert len(problems(folder, "seed", "seed.x=1", "seed=4")) == 2


def test_what_an_override_sets_comes_from_the_command_line(folder: Path) -> None:
    document = extended(folder, "seed: 7\n", ["optimizer={lr: 0.5}", "method.projector.layers=3"])
    assert document.origin(("optimizer", "lr")) == "command line"
    assert document.origin(("optimizer", "momentum")) == f"{folder}/base.yaml:4"
    assert document.origin(("method", "projector", "layers")) == "command line"
    assert document.origin(("method", "projector", "output_dim")) == f"{folder}/base.yaml:3"
    assert document.origin(("seed",)) == f"{folder}/c.yaml:2"


def test_python_values_survive_as_arguments(folder: Path) -> None:
    values = {"a.b": 1e-4, "c": "on", "d": [1, "1", None], "e": Path("/tmp/x y"), "f": "😀 \u2028", "g": (0.9, 0.99),
              "h": {"k": True}, "i": ""}  # fmt: skip
    data = overridden(folder, *as_arguments(values))
    assert data["a"] == {"b": 1e-4}
    assert [data[k] for k in "cdefghi"] == ["on", [1, "1", None], "/tmp/x y", "😀 \u2028", [0.9, 0.99], {"k": True}, ""]
