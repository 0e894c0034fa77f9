"""Sphinx configuration of the documentation site.

    pip install -e '.[docs]'
    sphinx-build -W --keep-going docs docs/_build

The option pages and the API pages are written from the code at each build, into `docs/generated`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

from sslcli.version import __version__  # noqa: E402

generate.write_pages(HERE / "generated")

project = "sslcli"
author = "The sslcli authors"
copyright = f"2026, {author}"  # noqa: A001
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sslcli {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "model_config,model_post_init"}
default_role = "code"  # the docstrings write code in single backticks, as Markdown does
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

#: Links from a page to files outside of docs/.
_OUTSIDE = re.compile(r"\]\(\.\./(?P<path>[^)]+)\)")


def link_to_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Links to files of the repository that are no pages lead to the repository."""
    source[0] = _OUTSIDE.sub(rf"]({generate.REPOSITORY}/blob/main/\g<path>)", source[0])


def as_restructured_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escapes what is markup in reStructuredText only (`|P(i)|`), and makes an indented formula a literal block."""
    if what == "attribute" and lines:
        lines[0] = f": {lines[0]}"  # or else napoleon takes what is before a colon for the type
    literal = None  # the indent of the line that introduces the formula
    for index, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is not None or not line.strip():
            continue
        parts = line.split("`")
        parts[::2] = [re.sub(r"([|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[index] = "`".join(parts)
        after = next((later for later in lines[index + 1 :] if later.strip()), "")
        if line.endswith(":") and not (lines[index + 1 :] or ["x"])[0].strip() and after[: indent + 1].isspace():
            lines[index] += ":"
            literal = indent


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out aliases of classes of options, and fields of named tuples, which the docstring describes."""
    is_alias = name == "Options" and what == "class"
    return True if is_alias or type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_to_repository)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_member)
