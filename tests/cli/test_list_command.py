"""`ssl list`: which plugins are installed, their options, and whether they load."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from plugin_helpers import BELL, CALLBACK, Install
from run_helpers import ssl

from sslcli import plugins
from sslcli.cli import catalog
from sslcli.plugins import FoundPlugin


def test_list_loads_nothing(install: Install, tmp_path: Path) -> None:
    trace = tmp_path / "imported"
    install("loud", "[sslcli.callbacks]\nloud = loud:Bell\n", {"loud": f"open({str(trace)!r}, 'w')\n{CALLBACK}"})
    for arguments in (["list"], ["list", "callbacks"], ["list", "--json"]):
        code, out, _ = ssl(*arguments)
        assert code == 0
        assert "loud:Bell" in out
    assert not trace.exists()
    ssl("list", "callbacks", "--check")
    assert trace.exists()


def test_list_shows_the_meaning_of_each_plugin_and_where_those_of_others_are_from(install: Install) -> None:
    install("bells", BELL, {"bells": CALLBACK}, version="2.3")
    _, out, err = ssl("list", "callbacks")
    assert "bell Rings. (bells 2.3, bells:Bell)" in [" ".join(line.split()) for line in out.splitlines()]
    assert err == ""
    row = {"name": "bell", "package": "bells", "version": "2.3", "target": "bells:Bell"}
    row |= {"summary": "Rings.", "default": False}
    assert row in json.loads(ssl("list", "callbacks", "--json")[1])
    everything = json.loads(ssl("list", "--json")[1])
    assert row in everything["callbacks"]
    assert list(everything) == list(plugins.GROUPS)


def test_every_built_in_plugin_has_a_meaning_in_words_and_the_defaults_are_marked() -> None:
    everything = json.loads(ssl("list", "--json")[1])
    ours = [row for rows in everything.values() for row in rows if row["package"] == "sslcli"]
    assert [row["name"] for row in ours if not re.fullmatch(r"[A-Za-z].{10,119}[.]", row["summary"])] == []
    marked = {group: [row["name"] for row in rows if row["default"]] for group, rows in everything.items()}
    on = ["collapse", "knn", "online_probe", "progress", "tensorboard"]
    assert {group: names for group, names in marked.items() if names} == {
        "backbones": ["resnet18"], "schedules": ["cosine"], "evaluators": ["knn"], "callbacks": on
    }  # fmt: skip
    assert "  cosine (default)  " in ssl("list")[1]


def test_the_source_of_a_module_in_a_package_is_found_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "__init__.py").write_text("raise OSError('imported')")
    (tmp_path / "outer" / "inner" / "__init__.py").touch()
    (tmp_path / "outer" / "inner" / "part.py").write_text('class Thing:\n    """Does a thing. And more."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    about = {target: FoundPlugin("thing", "outer", "1", target, "sslcli.callbacks") for target in TARGETS}
    assert {target: catalog.about(plugin)["summary"] for target, plugin in about.items()} == TARGETS


def test_methods_are_a_table_of_year_needs_and_views(install: Install) -> None:
    method = 'class Far:\n    """Far: away."""\n    year: int = 2031\n    views: int\n    needs = ("ViT", "teacher")\n'
    method += "    view_count = 3\n"
    silent = 'class Near(Far):\n    """Near: by."""\n    minimum_views = later()\n'
    silent += (
        'class Odd:\n    """Odd: one."""\n    year = "x"\n    needs = "queue"\n    needs_labels, view_count = 5, 6\n'
    )
    silent += '    view_count = "y"\n'
    entries = "[sslcli.methods]\nfar = far:Far\nnear = far:Near\nodd = far:Odd\n"
    install("far", entries, {"far": method + silent})
    lines = [line.split("  ") for line in ssl("list", "methods")[1].splitlines()]
    cells = [[each.strip() for each in line if each.strip()] for line in lines]
    rows = {line[0]: line[1:] for line in cells}
    assert rows["method"] == ["year", "needs", "views"]
    assert rows["moco_v1"][:3] == ["2019", "queue", "2+"]
    assert rows["supcon"][:3] == ["2020", "labels", "2+"]
    assert rows["moco"][:3] == ["2020", "-", "2"]
    assert rows["far"] == ["2031", "ViT, teacher", "3", "Far: away.", "(far 1.0, far:Far)"]
    assert rows["near"] == ["Near: by.", "(far 1.0, far:Near)"]  # what the source does not say
    assert rows["odd"] == ["Odd: one.", "(far 1.0, far:Odd)"]
    found = {row["name"]: row for row in json.loads(ssl("list", "methods", "--json")[1])}
    assert found["far"] | {"year": 2031, "needs": ["ViT", "teacher"], "views": "3"} == found["far"]
    assert [name for name, row in found.items() if row["package"] == "sslcli" and not row["year"]] == []


#: What the source of each says; nothing about what is not there.
TARGETS = {"outer.inner.part:Thing": "Does a thing.", "outer.inner.part:Other": "", "outer.inner.nowhere:Thing": ""}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("training", ["epochs: int = 200  (a resumed run may have another)", "clip.norm: float required"]),
        ("checkpoints", ["keep: int = 2", "Number of most recent checkpoints of `every_epochs`"]),
        ("data", ["limit: int | null = null", "cifar10 ", "ssl list datasets NAME"]),
        ("schedule", ["warmup_epochs: float = 0.0", "cosine (default) ", "ssl list schedules NAME"]),
        ("optimizer", ["lr: float required", "adamw "]),
        ("method", ["simclr ", "ssl list methods NAME"]),
        ("backbone", ["weights: ", "resnet18 (default) "]),
        ("views", ["crop_scale: tuple[float, float]", "flip.p: float = 0.5", "simclr "]),
        ("callbacks", ["knn (default) ", "callbacks.knn=null"]),
        ("seed", ["0 by default"]),
        ("output", ["run directory"]),
        ("training clip", ["clip.mode: "]),
        ("data shapes", ["shapes  (sslcli"]),
        ("views simclr", ["strength: float | null = null"]),
    ],
)
def test_every_section_of_a_config_is_listed(words: str, shown: list[str]) -> None:
    code, out, err = ssl("list", *words.split())
    assert (code, err) == (0, "")
    assert [line for line in shown if line not in out] == []


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("train", ["ssl list training", "ssl list methods NAME", "docs/config.md"]),
        ("bench", ["ssl list"]),
        ("eval", ["ssl list evaluators NAME"]),
        ("export", ["ssl list exporters NAME"]),
        ("list", ["ssl list training", "ssl list --schema > config.schema.json"]),
    ],
)
def test_help_names_where_options_are_listed(command: str, named: list[str]) -> None:
    words = " ".join(re.sub(r"[│╭╰─╮╯]", " ", ssl(command, "--help")[1]).split())
    assert [each for each in named if each not in words] == []


def test_sections_as_json() -> None:
    found = json.loads(ssl("list", "schedule", "--json")[1])
    assert {"warmup_epochs", "warmup"} <= {row["name"] for row in found["options"]}
    assert [row["name"] for row in found["plugins"] if row["default"]] == ["cosine"]
    (row,) = json.loads(ssl("list", "training", "batch_size", "--json")[1])["options"]
    assert (row["default"], row["resume"]) == (256, "warn")
    assert [*json.loads(ssl("list", "--json")[1])] == [*plugins.GROUPS]
    assert {"seed", "training", "views"} <= {line.split()[0] for line in ssl("list")[1].splitlines()}


def test_check_shows_each_failure_and_exits_1(install: Install) -> None:
    install(
        "brittle",
        f"{BELL}bad = broken:Bell\nworse = nowhere:Bell\n",
        {"broken": "raise OSError('disk')", "bells": CALLBACK},
    )
    code, out, _ = ssl("list", "callbacks", "--check")
    assert code == 1
    for line in (
        "FAILED  callbacks/bad  brittle 1.0", "OSError: disk", "No module named 'nowhere'",
        "ok      callbacks/bell  brittle 1.0",
    ):  # fmt: skip
        assert line in out
    rows = json.loads(ssl("list", "callbacks", "--check", "--json")[1])
    assert {row["name"] for row in rows if not row["ok"]} == {"bad", "worse"}
    assert {row["name"]: row["error"] for row in rows}["bell"] is None


def test_check_shows_a_clash_of_names_before_anyone_uses_them(install: Install) -> None:
    install("bells", BELL, {"bells": CALLBACK})
    install("gongs", "[sslcli.callbacks]\nbell = gongs:Bell\n", {"gongs": CALLBACK})
    code, out, _ = ssl("list", "callbacks", "--check")
    assert code == 0
    assert "callbacks/bell  bells 1.0  (also in gongs)" in out


def test_every_built_in_plugin_loads() -> None:
    code, out, _ = ssl("list", "--check")
    ours = [line for line in out.splitlines() if " sslcli " in line]
    assert len(ours) > 20
    assert [line for line in ours if not line.startswith("ok")] == [], out
    assert code == 0


def test_list_with_a_name_shows_its_options_with_defaults_help_and_paper() -> None:
    code, out, _ = ssl("list", "methods", "simclr")
    assert code == 0
    for words in ("temperature: float = ", "projector.", "paper:"):
        assert words in out
    options = {row["name"]: row for row in json.loads(ssl("list", "optimizers", "lars", "--json")[1])["options"]}
    assert options["lr"]["required"]
    assert options["weight_decay"]["default"] == 0.0


@pytest.mark.parametrize(
    "words", [["methdos"], ["trainign"], ["training", "epoch"], ["methods", "simclrr"], ["methods", "simclr/x"]]
)
def test_list_of_an_unknown_group_or_name_is_one_line(words: list[str]) -> None:
    code, out, err = ssl("list", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
