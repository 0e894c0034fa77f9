"""The values of overrides: YAML, but the text of a path is taken as it is, so that no character of it needs quotes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

from sslcli.contracts.errors import ConfigError
from sslcli.plugins import PluginError, load

from .data_section import IMAGES, named
from .document import Document, Key, parse
from .schema import DEFAULTS, PLUGIN_SECTIONS


def read_value(text: str, key: Key, data: dict[str, Any], source: str) -> Document:
    """Returns the value of an override.

    A path in quotes, as shells and scripts may pass it on, is what is in the quotes, and null and nothing reset it.

    Args:
        text: what follows the `=`.
        key: the key that is set.
        data: the config so far, which says which plugins have the options.
        source: where the value comes from, for messages.

    Raises:
        ConfigError: it is not valid YAML, and not that of a path.
    """
    try:
        found = parse(text, source)
    except ConfigError:
        if not _is_path(key, data, text):
            raise
        return Document(text, {(): source})  # type: ignore[arg-type]
    value: Any = found.data
    is_string = isinstance(value, str) and (value == text or text[:1] in ("'", '"'))
    is_null = text.lower() in ("", "null")
    if is_string or is_null or not _is_path(key, data, text):
        return found
    return Document(text, {(): source})  # type: ignore[arg-type]


def _is_path(key: Key, data: dict[str, Any], text: str) -> bool:
    """Whether an option is a path, as `output`, `data.root` and `backbone.weights` are."""
    if key == ("output",):
        return True
    if key == ("data",):  # a name, a folder, or `{name: folder, root: …}`
        return not text.startswith("{") or os.path.isdir(os.path.expanduser(text))
    section, *inner = key
    if section == "callbacks" and len(inner) > 1:
        group, name = "callbacks", inner.pop(0)
    elif section in PLUGIN_SECTIONS:
        group, name = PLUGIN_SECTIONS[section], _name(section, data)
    else:
        return False
    try:
        annotation: Any = load(group, name).Options
    except PluginError:  # reported later, with all other problems
        return False
    for part in inner:
        model = next((each for each in (annotation, *get_args(annotation)) if hasattr(each, "model_fields")), None)
        if model is None or part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
    return Path in (annotation, *get_args(annotation))


def _name(section: str, data: dict[str, Any]) -> str:
    """The plugin that a section names so far."""
    value = named(data.get(section)) if section == "data" else data.get(section)
    value = value.get("name") if isinstance(value, dict) else value
    default = {**DEFAULTS, "data": {"name": IMAGES}}.get(section, {})
    return value if isinstance(value, str) else str(default.get("name"))
