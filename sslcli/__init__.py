"""Pre-trains image encoders by self-supervision: `train`, `evaluate`, `export`, `load_backbone`, and what they return.

Importing this imports neither torch nor anything else of ours: the functions come in when they are first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslcli.api import Run as Run
    from sslcli.api import evaluate as evaluate
    from sslcli.api import evaluate_all as evaluate_all
    from sslcli.api import export as export
    from sslcli.api import from_config as from_config
    from sslcli.api import load_backbone as load_backbone
    from sslcli.api import train as train
    from sslcli.version import __version__ as __version__

# A library leaves it to the program where its messages go.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = ["Run", "__version__", "evaluate", "evaluate_all", "export", "from_config", "load_backbone", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "version" if name == "__version__" else "api"
        return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__  # so that a notebook completes names that are not imported yet
