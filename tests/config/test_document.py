"""YAML in and out: the scalar rules of YAML 1.2, line numbers, errors, and the round trip."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from sslcli.config.document import Document, dump_value, dump_yaml, parse, read_file
from sslcli.contracts.errors import ConfigError


def read(text: str, tmp_path: Path) -> Document:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return read_file(path)


def problems(text: str, tmp_path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path)
    return [line.removeprefix(f"{tmp_path}/") for line in caught.value.problems]


#: Text and value under YAML 1.2's rules.
SCALARS = {
    "1e-4": 1e-4, "1E3": 1000.0, "5.": 5.0, ".5": 0.5, "-1.5e+2": -150.0, "-.inf": -math.inf, ".nan": math.nan,
    "!!float 1": 1.0,     "12": 12, "+3": 3, "0o17": 15, "0x1F": 31, "010": 10,
    "true": True, "False": False, "null": None, "~": None, "": None,
    "on": "on", "off": "off", "yes": "yes", "no": "no", "y": "y", "1_000": "1_000", "12:30": "12:30", "inf": "inf",
    "2020-01-01": "2020-01-01", "0b11": "0b11", "1e": "1e", "'1'": "1", '"true"': "true", "!!str 1": "1",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_follow_yaml_1_2(text: str, tmp_path: Path) -> None:
    assert repr(read(f"x: {text}\n", tmp_path).data["x"]) == repr(SCALARS[text])


def test_every_value_has_its_line(tmp_path: Path) -> None:
    document = read("a: 1\nb:\n  c: 2\n  d: [3,\n    4]\n", tmp_path)
    lines = {key: origin.rpartition(":")[2] for key, origin in document.where.items()}
    assert lines[("a",)] == "1"
    assert lines[("b", "c")] == "3"
    assert lines[("b", "d", "1")] == "5"
    assert document.origin(("b", "c", "no", "such")) == document.where[("b", "c")]


def test_every_duplicate_key_is_reported_with_both_lines(tmp_path: Path) -> None:
    text = "seed: 1\nmethod:\n  name: simclr\n  name: byol\nseed: 2\n"
    assert problems(text, tmp_path) == [
        "c.yaml:4: method.name: duplicate key (first on line 3)",
        "c.yaml:5: seed: duplicate key (first on line 1)",
    ]
    with pytest.raises(ConfigError) as caught:
        parse("{lr: 1, lr: 2}", "command line: optimizer")
    assert caught.value.problems == ["command line: optimizer: lr: duplicate key"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\n", 3), ("a: 1\n\tb: 2\n", 2), ("a: b: c\n", 1), ("a: 1\n  b: 2\n", 2),
        ("a: 1\n---\nb: 2\n", 2), ("a: *nobody\n", 1), ("a: 'open\n", 2),
    ],
)  # fmt: skip
def test_a_syntax_error_is_one_line_with_its_position(text: str, line: int, tmp_path: Path) -> None:
    (problem,) = problems(text, tmp_path)
    assert problem.startswith(f"c.yaml:{line}: not valid YAML: ")
    assert "\n" not in problem


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    assert read("a: &x {n: 1}\nb: *x\n", tmp_path).data == {"a": {"n": 1}, "b": {"n": 1}}


def test_malicious_files_are_one_problem_and_no_crash(tmp_path: Path) -> None:
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    aliases += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for text, expected in (
        (aliases, "more than 100,000 values"),
        ("a: " + "[" * 5000, "nested more than 50 levels deep"),
        (f"a: {'9' * 10_000}", "is not a valid int"),
    ):
        (problem,) = problems(text, tmp_path)
        assert expected in problem
        assert len(problem) < 200


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!python/object/apply:os.system ['true']", "a: the tag !!python/object/apply:os.system is not supported"),
        ("a: !!python/name:os.system ''", "a: the tag !!python/name:os.system is not supported"),
        ("a: !mine {b: 1}", "a: the tag !mine is not supported"),
        ("a: !!set {b, c}", "a: the tag !!set is not supported"),
        ("a: !!binary aGk=", "a: the tag !!binary is not supported"),
        ("a: !!int x", "a: 'x' is not a valid int"),
        ("a: !!float 0x1F", "a: '0x1F' is not a valid float"),
        ("a: !!bool maybe", "a: 'maybe' is not a valid bool"),
        ("a: !!null 3", "a: '3' is not a valid null"),
        ("[1, 2]: 3", "a key must be a word or a number"),
        ("a: &a\n  b: *a\n", "a.b: an alias that contains itself"),
    ],
)
def test_anything_but_plain_data_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    assert problems(text, tmp_path) == [f"c.yaml:1: {problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "c.yaml: is empty"),
        ("# nothing\n", "c.yaml: is empty"),
        ("- a\n", "c.yaml:1: a config is a mapping of keys to values"),
        ("hello", "c.yaml:1: a config is a mapping of keys to values"),
    ],
)
def test_a_file_without_a_mapping_is_reported(text: str, problem: str, tmp_path: Path) -> None:
    assert problems(text, tmp_path) == [problem]


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    (tmp_path / "zero.yaml").write_bytes(b"a: \x00\n")
    for name, problem in (
        ("gone.yaml", "no such file"),
        (".", "is a directory"),
        ("latin.yaml", "is not a text file in UTF-8 (byte 3)"),
        ("zero.yaml", "not valid YAML"),
        ("latin.yaml/x", "not a directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_file(tmp_path / name)
        assert problem in str(caught.value)
        assert len(caught.value.problems) == 1


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("\ufeffa: 1\r\nb: on\r\n".encode())
    assert read_file(tmp_path / "c.yaml").data == {"a": 1, "b": "on"}


# --- the round trip

NASTY = [
    "", " ", "a ", " a", "on", "no", "y", "null", "~", "true", "1", "1e-4", "1_000", "0o7", "0x1", "0b1", "12:30",
    ".5", ".inf", ".nan", "2020-01-01", "=", "<<", "-", "- a", "a: b", "a #b", "#", "&a", "*a", "!a", "%a", "@a", "`a",
    "{", "[a", "'", '"', "a\nb", "a\n\n b\n", "\t", "a\tb", "ä ö", "日本", "😀", "\x85", "\u2028", "\ufeff", "\x07",
    "\\", "C:\\data", "\r", "\r\n", "\u2029", "~/data", "?", "? a", "|", ">", "word " * 60,
    "x" * 300, "a  b   c", "---", "...", "a,b", "1.", "+1", "1e5", "0.1e",
]  # fmt: skip
NUMBERS = [
    0, -1, 2**63, 0.1, 1e-4, 1e16, 1e300, 5e-324, -0.0, 3 / 4, 4 / 3, 1e22, math.inf, -math.inf, True, False, None,
]  # fmt: skip


@pytest.mark.parametrize("value", [*NASTY, *NUMBERS], ids=repr)
def test_written_values_are_read_back_the_same(value: Any, tmp_path: Path) -> None:
    data = {"v": value, "l": [value, [value]], "m": {"deep": {"er": value}}, "after": 1}
    found = read(dump_yaml(data), tmp_path).data
    assert found == data
    assert repr(found) == repr(data)  # 1, 1.0 and True are equal
    assert repr(parse(dump_value(value), "x").data) == repr(value)
    assert "\n" not in dump_value(value)


def test_random_documents_survive_the_round_trip(tmp_path: Path) -> None:
    random_ = random.Random(0)

    def document(depth: int) -> Any:
        kind = random_.random()
        if depth and kind < 0.35:
            return {random_.choice(NASTY): document(depth - 1) for _ in range(random_.randrange(4))}
        if depth and kind < 0.6:
            return [document(depth - 1) for _ in range(random_.randrange(4))]
        if kind < 0.7:
            return random_.choice(
                [random_.uniform(-1, 1) * 10 ** random_.randrange(-300, 300), random_.randrange(10**6)]
            )
        return random_.choice([*NASTY, *NUMBERS])

    for _ in range(150):
        data = {"k": document(4)}
        assert repr(read(dump_yaml(data), tmp_path).data) == repr(data)
