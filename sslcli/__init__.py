"""Pre-trains image encoders by self-supervision: `train`, `evaluate`, `export`, `load_backbone`, and what they return.

Importing this imports neither torch nor other modules of the package: functions are imported when first used.
"""

from __future__ import annotations

import sys

# `python -m sslcli` puts the working directory first on the path: a file there that is called like a module (yaml.py)
# would be imported in its place. Python has no earlier moment for this than here, short of `python -P`.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and {"sslcli", "-msslcli"} & {*sys.orig_argv}:
    del sys.path[0]

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslcli.api.classifier import load_classifier as load_classifier
    from sslcli.api.load import load_backbone as load_backbone
    from sslcli.api.run import Run as Run
    from sslcli.api.run import evaluate as evaluate
    from sslcli.api.run import evaluate_all as evaluate_all
    from sslcli.api.run import export as export
    from sslcli.api.train import from_config as from_config
    from sslcli.api.train import train as train
    from sslcli.version import __version__ as __version__

# A library leaves it to the application where its messages go.
logging.getLogger(__name__).addHandler(logging.NullHandler())

#: The module of each public name.
_MODULES = {
    "Run": "api.run", "__version__": "version", "evaluate": "api.run", "evaluate_all": "api.run",
    "export": "api.run", "from_config": "api.train", "load_backbone": "api.load", "load_classifier": "api.classifier",
    "train": "api.train",
}  # fmt: skip
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__  # so that a notebook completes names that are not imported yet
