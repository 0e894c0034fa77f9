"""Parts that methods share."""

from .heads import ProjectorOptions, mlp
from .momentum import MomentumEncoder, cosine_momentum
from .roles import parameter_roles

__all__ = ["MomentumEncoder", "ProjectorOptions", "cosine_momentum", "mlp", "parameter_roles"]
