"""What each parameter is for. Weight decay and trust ratios depend on this role, not on patterns in names or shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList

from sslcli.contracts.optimizer import Role

#: `_NormBase` is the base of every batch and instance norm, SyncBatchNorm included.
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
#: Their `weight` is a table of vectors, or an activation's coefficients: no factor of a matrix product.
_TABLES = (nn.Embedding, nn.EmbeddingBag, nn.PReLU)


def parameter_roles(module: nn.Module) -> dict[str, Role]:
    """Returns the role of every parameter, by the names and in the order of `module.named_parameters()`.

    The first rule that applies decides:

    1. what the module that owns the parameter declares in an attribute `parameter_roles`, a mapping from the names of
       its own direct parameters to roles;
    2. a norm layer's parameters are `norm`: those of torch's classes and their subclasses, and in other modules whose
       class name has `norm` in it the parameters with at most one dimension;
    3. parameters of `Embedding`, `EmbeddingBag` and `PReLU` are `embedding`;
    4. in torch's other layers and their subclasses, names with `bias` in them are `bias`, with `weight` in them
       `weight` (`in_proj_weight`, `weight_ih_l0`);
    5. in any other module, `weight` is `weight` and `bias` is `bias`;
    6. the rest is `embedding`: class tokens, positions, layer scales, gains.

    A parametrized tensor (`torch.nn.utils.parametrizations.weight_norm`) gives its role to all its parts.

    Raises:
        ValueError: if a module declares a role that doesn't exist, or one for a parameter that it doesn't own.
    """
    modules = dict(module.named_modules())
    roles: dict[str, Role] = {}
    for path, owner in modules.items():
        declared = _declared(path, owner)
        for name, parameter in owner.named_parameters(recurse=False):
            role = declared.get(name)
            if role is None and isinstance(owner, ParametrizationList):
                parent, _, tensor = path.rpartition(".")
                original = modules[parent.rpartition(".")[0]]
                role = _declared("", original).get(tensor) or _role(original, tensor, parameter.ndim)
            roles[f"{path}.{name}" if path else name] = role or _role(owner, name, parameter.ndim)
    # A parameter shared by two modules counts once, under the name that torch gives it.
    return {name: roles[name] for name, _ in module.named_parameters()}


def _declared(path: str, owner: nn.Module) -> Mapping[str, Role]:
    declared = getattr(owner, "parameter_roles", None)
    if not isinstance(declared, Mapping):
        return {}
    where = f"{path or 'module'} ({type(owner).__name__})"
    for name, role in declared.items():
        if role not in get_args(Role):
            raise ValueError(f"{where}: parameter_roles: {role!r} is no role; known: {', '.join(get_args(Role))}")
        parametrized = name in getattr(owner, "parametrizations", {})
        if name not in owner._parameters and not parametrized:
            raise ValueError(f"{where}: parameter_roles: {name!r} is not one of its own parameters")
    return declared


def _role(owner: nn.Module, name: str, dimensions: int) -> Role:
    if isinstance(owner, _NORMS):
        return "norm"
    if isinstance(owner, _TABLES):
        return "embedding"
    if _is_torch_layer(owner):
        return "bias" if "bias" in name else "weight" if "weight" in name else "embedding"
    if dimensions <= 1 and any("norm" in kind.__name__.lower() for kind in type(owner).__mro__):
        return "norm"
    return "bias" if name == "bias" else "weight" if name == "weight" else "embedding"


def _is_torch_layer(owner: nn.Module) -> bool:
    containers = ("torch.nn.modules.module", "torch.nn.modules.container")
    kinds = [kind.__module__ for kind in type(owner).__mro__]
    return any(kind.startswith("torch.nn.modules.") and kind not in containers for kind in kinds)
