"""`extends` and the command line's overrides: what is merged, replaced and dropped, and the origin of values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslcli.config.document import Document, parse
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


@pytest.mark.parametrize(
    ("base", "text", "expected"),
    [
        ("a: {b: {c: 1, d: 2}}", "a: {b: {c: 3}}\ne: 4", "a: {b: {c: 3, d: 2}}\ne: 4"),  # mappings are merged
        ("a: {b: [1, 2]}", "a: {b: [3]}", "a: {b: [3]}"),  # lists are replaced
        ("views: {preset: simclr}", "views: [{blur: 0.5}]", "views: [{blur: 0.5}]"),
        ("views: [{blur: 0.5}]", "views: {preset: simclr}", "views: {preset: simclr}"),
        ("a: {b: 1, c: 2}\nd: {e: 1}", "a: {b: null}\nd: null", "a: {b: null, c: 2}\nd: null"),  # null resets
        # Another name drops the options of the old one; the same name keeps them.
        ("optimizer: {name: sgd, momentum: 0}", "optimizer: {name: adamw, lr: 1}", "optimizer: {name: adamw, lr: 1}"),
        ("views: {preset: simclr, size: 32}", "views: {preset: byol}", "views: {preset: byol}"),
        ("optimizer: {name: sgd, lr: 1}", "optimizer: {name: sgd, k: 2}", "optimizer: {name: sgd, lr: 1, k: 2}"),
        # A bare name is short for a mapping with it; below a section, a name is an option like any other.
        ("method: {name: simclr, k: 1}", "method: byol", "method: {name: byol}"),
        ("method: {name: simclr, k: 1}", "method: simclr", "method: {name: simclr, k: 1}"),
        ("method: {h: {name: a, k: 3}}", "method: {h: {name: b}}", "method: {h: {name: b, k: 3}}"),
    ],
)  # fmt: skip
def test_a_file_is_merged_into_its_base(folder: Path, base: str, text: str, expected: str) -> None:
    (folder / "base.yaml").write_text(base)
    assert extended(folder, text).data == parse(expected, "expected").data


def test_a_chain_of_three_files_is_merged_from_its_end(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "middle.yaml").write_text("extends: ../base.yaml\nseed: 5\noptimizer: {lr: 0.3}\n")
    (folder / "top.yaml").write_text("extends: sub/middle.yaml\noptimizer: {momentum: 0.7}\n")
    document = read_config(folder / "top.yaml", [])
    assert document.data["seed"] == 5
    assert document.data["optimizer"] == {"name": "sgd", "lr": 0.3, "momentum": 0.7}
    origins = {key: document.origin(("optimizer", key)) for key in ("name", "lr", "momentum")}
    assert origins == {
        "name": f"{folder}/sub/../base.yaml:4",
        "lr": f"{folder}/sub/middle.yaml:3",
        "momentum": f"{folder}/top.yaml:2",
    }


def test_a_cycle_is_reported_with_its_files(folder: Path) -> None:
    (folder / "base.yaml").write_text("extends: other.yaml\n")
    (folder / "other.yaml").write_text("extends: base.yaml\n")
    (problem,) = problems(folder)
    assert problem.endswith("extends itself: base.yaml extends other.yaml extends base.yaml")
    (folder / "base.yaml").write_text("extends: base.yaml\n")
    assert problems(folder) == ["base.yaml: extends itself: base.yaml extends base.yaml"]


def test_a_missing_base_is_reported_where_it_is_named(folder: Path) -> None:
    (folder / "c.yaml").write_text("seed: 1\nextends: gone.yaml\n")
    assert problems(folder, file="c.yaml") == ["c.yaml:2: extends: no such file: gone.yaml"]
    (folder / "c.yaml").write_text("extends: [a.yaml, b.yaml]\n")
    assert problems(folder, file="c.yaml") == ["c.yaml:1: extends: should be the name of one YAML file"]


def test_reading_a_base_twice_shares_no_values(folder: Path) -> None:
    first = overridden(folder, "method.projector.layers=9")
    assert overridden(folder)["method"]["projector"]["layers"] == 2
    assert first["method"]["projector"]["layers"] == 9


# --- overrides


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e-4", 1e-4), ("on", "on"), ("", None), ("null", None), ("[1, 2]", [1, 2]), ("{a: b}", {"a": "b"}),
        ("a=b", "a=b"), ("'1'", "1"),
    ],
)  # fmt: skip
def test_the_value_of_an_override_is_yaml(folder: Path, value: str, expected: object) -> None:
    assert overridden(folder, f"optimizer.lr={value}", "optimizer.new=1")["optimizer"]["lr"] == expected


@pytest.mark.parametrize(
    ("base", "overrides", "expected"),
    [
        ("seed: 0", ["seed=1", "seed=2"], "seed: 2"),  # the last one wins
        ("seed: 0", ["training.clip.norm=3"], "seed: 0\ntraining: {clip: {norm: 3}}"),
        ("method: simclr", ["method.k=0.2"], "method: {name: simclr, k: 0.2}"),
        ("seed: 0", ["data=shapes", "data.count=64"], "seed: 0\ndata: {name: shapes, count: 64}"),
        # Another name drops the options.
        ("optimizer: {name: sgd, lr: 1}", ["optimizer=adamw"], "optimizer: {name: adamw}"),
        ("optimizer: {name: sgd, k: 1}", ["optimizer.name=adamw", "optimizer.lr=1"], "optimizer: {name: adamw, lr: 1}"),
        ("optimizer: {name: sgd, k: 1}", ["optimizer={name: sgd, lr: 2}"], "optimizer: {name: sgd, k: 1, lr: 2}"),
        ("views: {preset: simclr, size: 32}", ["views.preset=byol"], "views: {preset: byol}"),
        # Names come first, wherever they stand.
        ("optimizer: {name: sgd, k: 1}", ["optimizer.lr=1", "optimizer=adamw"], "optimizer: {lr: 1, name: adamw}"),
        ("optimizer: {name: sgd}", ["optimizer.lr=1", "optimizer=null"], "optimizer: null"),
        # Elements of lists are addressed by index; single views of a preset are kept by theirs.
        ("views: [{blur: 0}, {flip: 0}]", ["views.0.blur=1", "views.1.k=8"], "views: [{blur: 1}, {flip: 0, k: 8}]"),
        ("optimizer: {betas: [0.9, 0.99]}", ["optimizer.betas.1=0.5"], "optimizer: {betas: [0.9, 0.5]}"),
        ("views: {preset: simclr}", ["views.0.blur=0.5"], "views: {preset: simclr, '0': {blur: 0.5}}"),
    ],
)  # fmt: skip
def test_overrides_are_applied_in_order(folder: Path, base: str, overrides: list[str], expected: str) -> None:
    (folder / "base.yaml").write_text(base)
    assert overridden(folder, *overrides) == parse(expected, "expected").data


@pytest.mark.parametrize(
    ("views", "problem"), [("[1, 2]", "should be an index from 0 to 1"), ("[]", "the list is empty")]
)
def test_a_wrong_index_is_reported(folder: Path, views: str, problem: str) -> None:
    (folder / "base.yaml").write_text(f"views: {views}\n")
    for index in ("2", "x", "-1", "²"):
        assert problems(folder, f"views.{index}.blur=1") == [f"command line: views.{index}: {problem}"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "command line: 'seed': should look like key.path=value (optimizer.lr=0.3)"),
        ("=3", "command line: '=3': should look like key.path=value (optimizer.lr=0.3)"),
        (".lr=3", "command line: '.lr=3': should look like key.path=value (optimizer.lr=0.3)"),
        ("a..b=3", "command line: 'a..b=3': should look like key.path=value (optimizer.lr=0.3)"),
        ("seed.x=3", "command line: seed.x: seed is 3, not a mapping or a list"),
        ("optimizer.lr.x=3", "command line: optimizer.lr.x: optimizer.lr is 0.1, not a mapping or a list"),
        ("extends=other.yaml", "command line: extends: is only allowed in a file"),
        ("seed=[1", "command line: seed: not valid YAML: "),
        ("seed=!!python/name:os 1", "command line: seed: the tag !!python/name:os is not supported"),
    ],
)
def test_a_malformed_override_is_reported_in_one_line(folder: Path, override: str, problem: str) -> None:
    (line,) = problems(folder, override)
    assert line.startswith(problem)


def test_all_malformed_overrides_are_reported_at_once(folder: Path) -> None:
    assert len(problems(folder, "seed", "seed.x=1", "seed=4")) == 2


def test_the_origin_of_an_overridden_value_is_the_command_line(folder: Path) -> None:
    document = extended(folder, "seed: 7\n", ["optimizer={lr: 0.5}", "method.projector.layers=3"])
    assert document.origin(("optimizer", "lr")) == "command line"
    assert document.origin(("optimizer", "momentum")) == f"{folder}/base.yaml:4"
    assert document.origin(("method", "projector", "layers")) == "command line"
    assert document.origin(("method", "projector", "output_dim")) == f"{folder}/base.yaml:3"
    assert document.origin(("seed",)) == f"{folder}/c.yaml:2"


def test_python_values_round_trip_as_arguments(folder: Path) -> None:
    values = {"a.b": 1e-4, "c": "on", "d": [1, "1", None], "e": Path("/tmp/x y"), "f": "😀 \u2028", "g": (0.9, 0.99),
              "h": {"k": True}, "i": ""}  # fmt: skip
    data = overridden(folder, *as_arguments(values))
    assert data["a"] == {"b": 1e-4}
    assert [data[k] for k in "cdefghi"] == ["on", [1, "1", None], "/tmp/x y", "😀 \u2028", [0.9, 0.99], {"k": True}, ""]
