"""Pages with a table of tests: docs/known-bugs.md and docs/reliability.md. Each of the tests that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    pytest.param(cell, id=f"{page}: {first[:50]}")
    for page in ("known-bugs", "reliability")
    for first, cell in re.findall(
        r"^\| (?!bug|promise|---)(.+?) \| (.+) \|$", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), re.MULTILINE
    )
]


def test_the_pages_list_bugs_and_promises() -> None:
    assert len(ROWS) >= 27 + 20


@pytest.mark.parametrize("cell", ROWS)
def test_a_row_names_a_test_that_exists(cell: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", cell)
    assert named
    for file, name in named:
        assert re.search(rf"^ *def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), f"{file}::{name}"
