"""docs/known-bugs.md names a test for each bug, and each of these tests exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (?!bug|---)(.+?) \| (.+) \|$", (ROOT / "docs" / "known-bugs.md").read_text(), re.MULTILINE)


def test_the_page_lists_the_bugs() -> None:
    assert len(ROWS) >= 27


@pytest.mark.parametrize(("bug", "cell"), ROWS, ids=[bug[:50] for bug, _ in ROWS])
def test_a_bug_has_a_test(bug: str, cell: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", cell)
    assert named
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"
