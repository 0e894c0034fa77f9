"""Nothing that is read from outside is a traceback, a hang, or a changed file; `run.py` tries the same for an hour."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import run
import targets as fuzzed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sslcli.config.document import dump_yaml
from sslcli.config.merge import read_config
from sslcli.config.resolve import resolve
from sslcli.contracts.errors import ConfigError, SslError, UserError

CORPUS = Path(__file__).parent / "corpus"
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "examples" / "configs" / "config.schema.json").read_text(encoding="utf-8")
)
#: How many examples the quick test has; loading a network takes longer than the rest.
QUICK = {"checkpoint": 3, "backbone": 4, "classifier": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def every(folder):
    return fuzzed.make_targets(folder)


def problems(every, folder, numbers):
    return {
        (name, number): problem
        for name, target in every.items()
        for number in numbers(name)
        if (problem := run.finding(target, folder, number))
    }


def test_changed_files_are_one_line_each(every, folder):
    assert problems(every, folder, lambda name: range(QUICK.get(name, 12))) == {}


def test_what_was_found_before_stays_fixed(every, folder):
    found = {}
    for path in sorted(CORPUS.glob("*--*")):
        name = path.name.partition("--")[0].replace("-", " ")
        found[path.name] = run.finding(every[name], folder, None, path.read_bytes())
    assert found
    assert not any(found.values()), found


@pytest.mark.slow
def test_many_changed_files_are_one_line_each(every, folder):
    assert problems(every, folder, lambda name: range(1000, 2000)) == {}


def names() -> st.SearchStrategy[str]:
    """Keys of a config, and of what is in its sections."""
    keys: set[str] = set()
    for definition in [SCHEMA, *SCHEMA.get("$defs", {}).values()]:
        keys |= set(definition.get("properties", {}))
    return st.sampled_from(sorted(keys)) | st.text(max_size=5)


def plain() -> st.SearchStrategy[object]:
    """Values of any type, some of them names of plugins."""
    known = ("simclr", "byol", "resnet18", "vit_tiny", "shapes", "images", "sgd", "adamw", "auto", ".")
    numbers = st.integers(-(2**65), 2**65) | st.integers(-1, 64) | st.floats()
    leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(known)
    grown = lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names(), inner, max_size=4)  # noqa: E731
    return st.recursive(leaves, grown, max_leaves=8)


def sections() -> st.SearchStrategy[dict[str, object]]:
    """Configs that are nearly right: a small one, of which some values are others."""
    section = st.dictionaries(names(), plain(), max_size=4) | plain()
    return st.dictionaries(st.sampled_from(sorted(SCHEMA["properties"])), section, max_size=5)


@settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(change=sections(), inside=st.booleans())
def test_any_config_is_valid_or_a_list_of_problems(tmp_path_factory, change, inside):
    base = json.loads(json.dumps(fuzzed.TINY))
    for name, value in change.items():
        if inside and isinstance(value, dict) and isinstance(base.get(name), dict):
            base[name] |= value
        else:
            base[name] = value
    path = tmp_path_factory.getbasetemp() / "hypothesis.yaml"
    path.write_text(dump_yaml(base), encoding="utf-8")
    with contextlib.suppress(SslError):
        resolve(read_config(path, []))


BOMB = """
import resource, struct, zlib
from sslcli.contracts.errors import UnreadableImage
from sslcli.data.decode import decode
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = zlib.compressobj(1)
data = b"".join(rows.compress(bytes(100 * (1 + 4 * 7000))) for _ in range(70)) + rows.flush()
def png(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    return b"\\x89PNG\\r\\n\\x1a\\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, held + 2**28))
for side in (7000, 20000):
    try:
        decode("bomb", 3, content=png(side))
    except UnreadableImage as error:
        print(error)
"""


@pytest.mark.slow
def test_images_that_unpack_to_more_than_the_memory_are_unreadable():
    done = subprocess.run(
        [sys.executable, "-c", BOMB], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large = done.stdout.splitlines()
    assert small == "bomb: too large for the memory that is left"
    assert "limit of 178956970 pixels" in large


def test_an_error_is_a_line_for_each_problem_whatever_is_in_its_names(monkeypatch):
    assert run.unlike_lines(UserError("a\nb")) is None
    assert run.unlike_lines(ConfigError(["a\x85", "b"])) is None
    assert run.unlike_lines(UserError("")) == "no message"
    monkeypatch.setattr(run, "report", lambda error: print(f"ssl: {error}", file=sys.stderr))
    assert "not a line for each problem" in run.unlike_lines(UserError("a\nb"))
    assert "not a line for each problem" in run.unlike_lines(UserError("a\x1b"))
