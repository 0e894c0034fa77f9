"""The conformance kit: checks of what plugin contracts promise, for the tests of plugin authors and of the built-ins.

Each check takes the class and options for it, and raises AssertionError with a sentence that says what is wrong.
`check_plugin` finds the class by its group and name, as a config does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sslcli.contracts.backbone import BackboneProvider
from sslcli.contracts.data import StreamDataset
from sslcli.contracts.views import Preset
from sslcli.plugins import choose, get_group, load, load_found

from .augmentations import check_operation, check_preset
from .backbones import check_backbone, check_provider
from .callbacks import check_callback
from .datasets import check_dataset, check_stream
from .evaluators import check_evaluator
from .exporters import check_exporter
from .methods import check_method
from .optimizers import check_optimizer, check_schedule

__all__ = [
    "check_backbone", "check_callback", "check_dataset", "check_evaluator", "check_exporter", "check_method",
    "check_operation", "check_optimizer", "check_plugin", "check_preset", "check_provider", "check_schedule",
    "check_stream",
]  # fmt: skip

_CHECKS: dict[str, Callable[..., None]] = {
    "methods": check_method,
    "backbones": check_backbone,
    "datasets": check_dataset,
    "augmentations": check_operation,
    "optimizers": check_optimizer,
    "schedules": check_schedule,
    "evaluators": check_evaluator,
    "exporters": check_exporter,
    "callbacks": check_callback,
}


def check_plugin(group: str, name: str, options: Mapping[str, Any] | None = None, **settings: Any) -> None:
    """Checks the plugin that a config would find under this name.

    Args:
        group: `methods`, `backbones`, …
        name: `NAME`, `PACKAGE:NAME`, `PROVIDER/NAME`, or `PROVIDER` alone to check the provider itself.
        options: the plugin's options, as plain data.
        settings: further arguments of the group's check (`image_size=32`).

    Raises:
        AssertionError: if it breaks a rule of its contract.
        PluginError: if there is no such plugin, or it cannot be loaded.
    """
    kind = get_group(group).name
    cls: Any = load(kind, name) if "/" in name else load_found(choose(kind, name))
    if issubclass(cls, BackboneProvider):
        check_provider(cls)
    elif issubclass(cls, Preset):
        check_preset(cls, options, **settings)
    elif issubclass(cls, StreamDataset):
        check_stream(cls, options, **settings)
    else:
        _CHECKS[kind](cls, options, **settings)
