"""From a group and a name to the check for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sslcli.contracts.backbone import BackboneProvider
from sslcli.contracts.views import Preset
from sslcli.plugins import choose as choose_plugin
from sslcli.plugins import get_group, load, load_found

from .augmentations import check_operation, check_preset
from .callbacks import check_callback
from .datasets import check_dataset
from .evaluation import check_evaluator, check_exporter
from .methods import check_method
from .networks import check_backbone, check_provider
from .optimizers import check_optimizer, check_schedule

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
        AssertionError: if it breaks a promise.
        PluginError: if there is no such plugin, or it cannot be loaded.
    """
    kind = get_group(group).name
    cls: Any = load(kind, name) if "/" in name else load_found(choose_plugin(kind, name))
    if issubclass(cls, BackboneProvider):
        check_provider(cls)
    elif issubclass(cls, Preset):
        check_preset(cls, options, **settings)
    else:
        _CHECKS[kind](cls, options, **settings)
