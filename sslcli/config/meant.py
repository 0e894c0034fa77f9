"""The option that is meant by its last name alone: `lr=0.1` for `optimizer.lr=0.1`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from sslcli.plugins import suggest

from .document import Key, dump_value

#: What other tools call an option.
_ELSEWHERE = {
    "arch": "backbone", "architecture": "backbone", "model": "backbone", "encoder": "backbone", "dataset": "data",
    "data_dir": "root", "data_path": "root", "learning_rate": "lr", "wd": "weight_decay", "max_epochs": "epochs",
    "num_epochs": "epochs", "bs": "batch_size", "num_workers": "workers", "image_size": "size", "img_size": "size",
    "input_size": "size", "save_every": "every_epochs", "amp": "precision",
}  # fmt: skip


def unknown(name: str, value: Any, models: Mapping[Key, Any], sections: list[str], origin: str) -> str:
    """Returns what is wrong with a section that does not exist: `unknown; did you mean training.epochs=3?`.

    Every option that has this name is suggested, or else the section, or else the option, with the nearest name.

    Args:
        name: what was written in place of a section.
        value: its value.
        models: the options of each section, by its key; None if it has a problem.
        sections: the names of all sections.
        origin: where it was written, which says how options are written there.
    """
    keys = {".".join(key): key[-1] for section, model in models.items() for key in _keys(model, section)}
    plain = name.lower().replace("-", "_")
    plain = _ELSEWHERE.get(plain, plain)
    if plain in sections:
        found = [plain]
    else:
        near = [] if suggest(name, sections) else difflib.get_close_matches(plain, {*keys.values()}, n=1, cutoff=0.75)
        wanted = plain if plain in keys.values() else near[0] if near else None
        found = [key for key, last in keys.items() if last == wanted]
        found.sort(key=lambda key: key.startswith("callbacks."))  # more often another one is meant
    if not found:
        return f"unknown section{suggest(name, sections, otherwise=True)}"
    written = {"command line": "{key}={value}", "sslcli.train": 'overrides={{"{key}": {python}}}'}.get(origin, "{key}")
    shown = [written.format(key=key, value=dump_value(value), python=repr(value)) for key in found]
    return f"unknown; did you mean {' or '.join(shown)}?"


def _keys(model: Any, prefix: Key) -> Iterator[Key]:
    """The keys of all options of a model, of a tuple of names, or of None."""
    for name in model if isinstance(model, tuple) else getattr(model, "model_fields", ()):
        yield (*prefix, name)
        annotation = None if isinstance(model, tuple) else model.model_fields[name].annotation
        for each in (annotation, *get_args(annotation)):
            yield from _keys(each, (*prefix, name)) if hasattr(each, "model_fields") else ()
