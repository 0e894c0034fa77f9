"""Pre-trains image encoders by self-supervision: `train`, `evaluate`, `export`, `load_backbone`, and what they return.

Importing this imports neither torch nor anything else of ours: the functions come in when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .python_api import Run as Run
    from .python_api import evaluate as evaluate
    from .python_api import evaluate_all as evaluate_all
    from .python_api import export as export
    from .python_api import from_config as from_config
    from .python_api import load_backbone as load_backbone
    from .python_api import train as train
    from .version import __version__ as __version__

__all__ = ["Run", "__version__", "evaluate", "evaluate_all", "export", "from_config", "load_backbone", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "version" if name == "__version__" else "python_api"
        return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
