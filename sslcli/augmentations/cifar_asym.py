"""The preset `cifar_asym`."""

from sslcli.contracts.views import Preset

from .byol import COMMON


class CIFARAsymPreset(Preset):
    """BYOL's views without blur, as libraries use them on CIFAR."""

    fixed = [COMMON, {**COMMON, "solarize": 0.2}]
