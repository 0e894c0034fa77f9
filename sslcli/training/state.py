"""The content of a checkpoint: the tensors and numbers of method, optimizer and callbacks, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.config.resolve import RunConfig
from sslcli.config.schema import PLUGIN_SECTIONS
from sslcli.contracts.callback import Callback
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Method
from sslcli.optimizers.stored import check_stored, flat
from sslcli.plugins import choose
from sslcli.runs.checkpoint import Checkpoint

METHOD, OPTIMIZER, CALLBACK = "method.", "optimizer.", "callback."


def named_optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """Returns `{parameter name}.{key}` → tensor or number, nested dictionaries flattened with dots."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {k: v for parameter, state in optimizer.state.items() for k, v in flat(state, f"{names[id(parameter)]}.")}


def load_optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module, flat: Mapping[str, Any]) -> None:
    """Restores what `named_optimizer_state` returned.

    Raises:
        UserError: there is state of a parameter that the module does not have, or such as the optimizer does not keep.
    """
    order = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    indices = {parameter: index for index, parameter in enumerate(order)}
    rest = dict(flat)
    states: dict[int, dict[str, Any]] = {}
    named: dict[str, tuple[Tensor, dict[str, Any]]] = {}
    for name, parameter in module.named_parameters():
        if id(parameter) not in indices:
            continue
        for full in [full for full in rest if full.startswith(f"{name}.")]:
            target = states.setdefault(indices[id(parameter)], {})
            *path, key = full.removeprefix(f"{name}.").split(".")
            for part in path:
                target = target.setdefault(part, {})
            target[key] = _like(rest.pop(full), parameter)
        named[name] = parameter, states.get(indices[id(parameter)], {})
    if rest:
        raise UserError(f"has optimizer state for {next(iter(rest))!r}, which the method does not have")
    try:
        check_stored(optimizer, named)
    except ValueError as error:
        raise UserError(str(error)) from error
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(value: Any, parameter: Tensor) -> Any:
    """Converts a moment to its parameter's memory format: if the parameter is channels_last and the moment contiguous,
    fused CPU optimizers silently compute wrong updates."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value


def collect(
    method: Method, optimizer: torch.optim.Optimizer, callbacks: Mapping[str, Callback]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns all tensors by name, and the plain numbers by name; of the method without what is frozen."""
    frozen = frozen_state(method)
    values: dict[str, Any] = {METHOD + name: value for name, value in method.state_dict().items() if name not in frozen}
    values |= {OPTIMIZER + name: value for name, value in named_optimizer_state(optimizer, method).items()}
    for name, callback in callbacks.items():
        values |= {f"{CALLBACK}{name}.{key}": value for key, value in callback.state_dict().items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in values.items() if name not in tensors}


def restore(
    checkpoint: Checkpoint, method: Method, optimizer: torch.optim.Optimizer, callbacks: Mapping[str, Callback]
) -> None:
    """Restores what `collect` returned.

    Raises:
        UserError: the checkpoint does not fit the installed method, or what is frozen in it is not what it was.
    """
    values: dict[str, Any] = {**checkpoint.tensors, **checkpoint.document["numbers"]}
    now, before = frozen_digests(method), checkpoint.document.get("frozen", {})
    for name in method.frozen:
        if now[name] != before.get(name):
            raise UserError(f"{checkpoint.path}: was trained with another {name!r}: give the method the same one")
    for name, own in method.state_dict().items():
        value = values.get(METHOD + name, own)
        if isinstance(own, Tensor) and getattr(value, "dtype", None) != own.dtype:
            kind = getattr(value, "dtype", type(value).__name__)
            raise UserError(f"{checkpoint.path}: does not fit the method: {name} is {kind} there, {own.dtype} here")
    try:
        method.load_state_dict({**frozen_state(method), **_under(values, METHOD)}, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{checkpoint.path}: does not fit the method: {' '.join(lines[1:3])}") from error
    try:
        load_optimizer_state(optimizer, method, _under(values, OPTIMIZER))
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    for name, callback in callbacks.items():
        if state := _under(values, f"{CALLBACK}{name}."):
            callback.load_state_dict(state)


def frozen_state(method: Method) -> dict[str, Tensor]:
    """Returns the part of a method's state that is not saved: that of its frozen modules."""
    prefixes = tuple(f"{name}." for name in method.frozen)
    return {name: value for name, value in method.state_dict().items() if name.startswith(prefixes)}


def frozen_digests(method: Method) -> dict[str, str]:
    """Returns a sha256 of the weights and buffers of each frozen module, by name."""
    digests = {}
    for module in method.frozen:
        digest = hashlib.sha256()
        for name, tensor in method.get_submodule(module).state_dict().items():
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\0".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data if values.numel() else b"")
        digests[module] = digest.hexdigest()
    return digests


def _under(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def plugins_used(config: RunConfig) -> dict[str, dict[str, str]]:
    """Returns package and version of every plugin that a config names."""
    named = {section: (group, getattr(config, section).name) for section, group in PLUGIN_SECTIONS.items()}
    views = [view for phase in config.view_phases for view in phase.views]
    operations = {operation.name for view in views for operation in view.operations}
    named |= {f"augmentation.{name}": ("augmentations", name) for name in operations}
    named |= {f"callback.{name}": ("callbacks", name) for name in config.callbacks}
    used = {}
    for key, (group, name) in named.items():
        found = choose(group, name.partition("/")[0])
        used[key] = {"name": name, "package": found.package, "version": found.version}
    return used
