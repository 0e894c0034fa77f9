"""The generated parts of docs/performance.md and other pages, each between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, ["---"] * len(header), *rows])


def with_part(page: str, name: str, text: str) -> str:
    """Returns the page with this part replaced by the text; ValueError if the page does not have the part."""
    part = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    if part.search(page) is None:
        raise ValueError(f"the page has no <!-- {name} --> … <!-- /{name} -->")
    return part.sub(lambda _: f"\n{text.strip()}\n\n", page)


def write_part(name: str, text: str, page: str = PAGE.name) -> None:
    """Replaces a part of a page in docs/."""
    path = PAGE.with_name(page)
    path.write_text(with_part(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")
