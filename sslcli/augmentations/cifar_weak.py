"""The preset `cifar_weak`."""

from sslcli.contracts.views import Preset

from .moco_v2 import MoCoV2Preset


class CIFARWeakPreset(Preset):
    """MoCo v2's views with bicubic crops from 8% of the image, as libraries use them on CIFAR."""

    fixed = [{**MoCoV2Preset.fixed[0], "crop_scale": [0.08, 1.0], "interpolation": "bicubic"}]
