"""`ssl list`: which plugins are installed, their options, and whether they load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plugin_helpers import BELL, CALLBACK, Install
from run_helpers import ssl

from sslcli import plugins


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


def test_list_shows_name_package_version_and_target(install: Install) -> None:
    install("bells", BELL, version="2.3")
    _, out, err = ssl("list", "callbacks")
    assert ["bell", "bells", "2.3", "bells:Bell"] in [line.split() for line in out.splitlines()]
    assert err == ""
    row = {"name": "bell", "package": "bells", "version": "2.3", "target": "bells:Bell"}
    assert row in json.loads(ssl("list", "callbacks", "--json")[1])
    everything = json.loads(ssl("list", "--json")[1])
    assert row in everything["callbacks"]
    assert list(everything) == list(plugins.GROUPS)


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


@pytest.mark.parametrize("words", [["methdos"], ["methods", "simclrr"], ["methods", "simclr/x"]])
def test_list_of_an_unknown_group_or_name_is_one_line(words: list[str]) -> None:
    code, out, err = ssl("list", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
