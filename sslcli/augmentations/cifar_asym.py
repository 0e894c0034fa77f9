"""The preset `cifar_asym`."""

from .byol import COMMON
from .strength import JitteredPreset


class CIFARAsymPreset(JitteredPreset):
    """BYOL's views without blur, as libraries use them on CIFAR."""

    fixed = [COMMON, {**COMMON, "solarize": 0.2}]
