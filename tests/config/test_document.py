"""YAML in and out: the scalar rules of YAML 1.2, places, mistakes, and the round trip of whatever is written."""

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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("5.", 5.0),
        (".5", 0.5),
        ("-1.5e+2", -150.0),
        ("12", 12),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("inf", "inf"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    found = read(f"x: {text}\n", tmp_path).data["x"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number(tmp_path: Path) -> None:
    assert math.isnan(read("x: .nan", tmp_path).data["x"])


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    document = read("a: 1\nb:\n  c: 2\n  d: [3,\n    4]\n", tmp_path)
    lines = {key: place.rpartition(":")[2] for key, place in document.where.items()}
    assert lines[("a",)] == "1"
    assert lines[("b", "c")] == "3"
    assert lines[("b", "d", "1")] == "5"
    assert document.origin(("b", "c", "no", "such")) == document.where[("b", "c")]


def test_every_duplicate_key_is_told_with_both_lines(tmp_path: Path) -> None:
    text = "seed: 1\nmethod:\n  name: simclr\n  name: byol\nseed: 2\n"
    assert problems(text, tmp_path) == [
        "c.yaml:4: method.name: written twice (first in line 3)",
        "c.yaml:5: seed: written twice (first in line 1)",
    ]


def test_a_duplicate_on_the_command_line_has_no_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("{lr: 1, lr: 2}", "command line: optimizer")
    assert caught.value.problems == ["command line: optimizer: lr: written twice"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: b: c\n", 1),
        ("a: 1\n  b: 2\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: *nobody\n", 1),
        ("a: 'open\n", 2),
    ],
)
def test_a_syntax_error_is_one_line_that_says_where(text: str, line: int, tmp_path: Path) -> None:
    (problem,) = problems(text, tmp_path)
    assert problem.startswith(f"c.yaml:{line}: not valid YAML: ")
    assert "\n" not in problem


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    (problem,) = problems("a: " + "[" * 5000, tmp_path)
    assert "not valid YAML" in problem


def test_an_alias_that_contains_itself_is_told(tmp_path: Path) -> None:
    assert problems("a: &a\n  b: *a\n", tmp_path) == ["c.yaml:1: a.b: an alias that contains itself"]


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    assert read("a: &x {n: 1}\nb: *x\n", tmp_path).data == {"a": {"n": 1}, "b": {"n": 1}}


def test_aliases_of_aliases_of_aliases_are_told_once(tmp_path: Path) -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    (problem,) = problems(text, tmp_path)
    assert "more than 100,000 values" in problem


@pytest.mark.parametrize(
    ("text", "said"),
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
    ],
)
def test_tags_and_keys_beyond_plain_data_are_refused(text: str, said: str, tmp_path: Path) -> None:
    assert problems(text, tmp_path) == [f"c.yaml:1: {said}"]


def test_a_number_of_thousands_of_digits_is_no_crash(tmp_path: Path) -> None:
    (problem,) = problems(f"a: {'9' * 10_000}", tmp_path)
    assert "is not a valid int" in problem
    assert len(problem) < 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "c.yaml: is empty"),
        ("# nothing\n", "c.yaml: is empty"),
        ("- a\n", "c.yaml:1: a config is a mapping of keys to values, not a list"),
        ("hello", "c.yaml:1: a config is a mapping of keys to values, not a string"),
        ("true", "c.yaml:1: a config is a mapping of keys to values, not a boolean"),
        ("3", "c.yaml:1: a config is a mapping of keys to values, not a number"),
    ],
)
def test_a_file_that_is_no_mapping_is_told(text: str, said: str, tmp_path: Path) -> None:
    assert problems(text, tmp_path) == [said]


def test_a_path_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    (tmp_path / "zero.yaml").write_bytes(b"a: \x00\n")
    for name, said in (
        ("gone.yaml", "no such file"),
        (".", "is a directory"),
        ("latin.yaml", "is not a text file in UTF-8 (byte 3)"),
        ("zero.yaml", "not valid YAML"),
        ("latin.yaml/x", "cannot be read (Not a directory)"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_file(tmp_path / name)
        assert said in str(caught.value)
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
    0,
    -1,
    2**63,
    0.1,
    1e-4,
    1e16,
    1e300,
    5e-324,
    -0.0,
    3 / 4,
    4 / 3,
    1e22,
    math.inf,
    -math.inf,
    True,
    False,
    None,
]


@pytest.mark.parametrize("value", [*NASTY, *NUMBERS], ids=repr)
def test_what_is_written_is_read_back_the_same(value: Any, tmp_path: Path) -> None:
    data = {"v": value, "l": [value, [value]], "m": {"deep": {"er": value}}, "after": 1}
    found = read(dump_yaml(data), tmp_path).data
    assert found == data
    assert repr(found) == repr(data)  # 1 and 1.0 and True are equal, but not the same
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
