"""The preset `supcon`."""

from sslcli.contracts.views import Preset

from .moco_v2 import MoCoV2Preset


class SupConPreset(Preset):
    """SupCon's two views in its authors' PyTorch code: MoCo v2's without blur (https://arxiv.org/abs/2004.11362)."""

    fixed = [{**MoCoV2Preset.fixed[0], "blur": 0.0}]
