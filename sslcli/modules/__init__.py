"""Parts that methods share."""

from .heads import ProjectorOptions, mlp
from .roles import parameter_roles

__all__ = ["ProjectorOptions", "mlp", "parameter_roles"]
