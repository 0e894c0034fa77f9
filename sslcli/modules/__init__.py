"""Parts of networks and methods that several methods share.

Methods of plugins may use everything in here; what most of them need can be imported from this package.
"""

from .heads import ProjectorOptions, build_head, mlp
from .momentum import MomentumEncoder, MomentumOptions
from .pairs import ViewsTogetherOptions, as_one_batch, each_view, global_and_local, one_view, two_views
from .prototypes import Prototypes
from .queue import Queue
from .roles import parameter_roles

__all__ = [
    "MomentumEncoder",
    "MomentumOptions",
    "ProjectorOptions",
    "Prototypes",
    "Queue",
    "ViewsTogetherOptions",
    "as_one_batch",
    "build_head",
    "each_view",
    "global_and_local",
    "mlp",
    "one_view",
    "parameter_roles",
    "two_views",
]
