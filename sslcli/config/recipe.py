"""The recipe follows the method: what a config file says for a method gives way if an override names another one.

`merge.override` has left out the file's views, optimizer and schedule. Here is what only the methods' defaults tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .document import Document, Key
from .merge import RECIPE, adopt


def settle(document: Document, new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Gives a document whose method was replaced what it keeps of the file, and returns the keys that it does not keep.

    An optimizer or a schedule stays if the new method has none to offer; of `training`, the keys that one of the two
    methods has a default for give way, unless an override names them.

    Args:
        document: with `replaced`; its sections are changed.
        new: the defaults of the method that it has now.
        old: the defaults of the method that it had.
    """
    assert document.replaced is not None
    before, whole = document.replaced
    left_out = _keys_left_out("method", before, document)
    for section in RECIPE:
        if whole.data.get(section) == document.data.get(section):
            continue
        if section == "views":
            left_out += _keys_left_out(section, before, document)
        elif section in new:
            left_out.append(section)
        else:
            document.data[section] = whole.data[section]
            adopt(document, whole, (section,))
    training = document.data.get("training")
    for name in list(training) if isinstance(training, dict) else []:
        key = ("training", name)
        if name in {**new.get("training", {}), **old.get("training", {})} and _origins(document, key) == _origins(
            before, key
        ):
            document.data["training"] = {k: v for k, v in document.data["training"].items() if k != name}
            left_out.append(".".join(key))
    return left_out


def _keys_left_out(section: str, before: Document, document: Document) -> list[str]:
    """The keys of a section that it no longer has; its own if it has none of them."""
    old, now = before.data.get(section), document.data.get(section)
    if isinstance(old, dict) and isinstance(now, dict) and old.keys() & now.keys():
        return [f"{section}.{name}" for name in old if name not in now]
    return [section]


def _origins(document: Document, key: Key) -> dict[Key, str]:
    return {each: origin for each, origin in document.where.items() if each[: len(key)] == key}
