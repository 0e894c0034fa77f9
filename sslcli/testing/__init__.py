"""The conformance kit: checks of what a plugin's contract promises, for plugin authors' tests and the built-ins' own.

Each check takes the class and options for it, and raises AssertionError with a sentence that says what is wrong.
`check_plugin` finds the class by its group and name, as a config does.
"""

from .augmentations import check_operation, check_preset
from .callbacks import check_callback
from .checks import check_plugin
from .datasets import check_dataset
from .evaluation import check_evaluator, check_exporter
from .methods import check_method
from .networks import check_backbone, check_provider
from .optimizers import check_optimizer, check_schedule

__all__ = [
    "check_backbone",
    "check_callback",
    "check_dataset",
    "check_evaluator",
    "check_exporter",
    "check_method",
    "check_operation",
    "check_optimizer",
    "check_plugin",
    "check_preset",
    "check_provider",
    "check_schedule",
]
