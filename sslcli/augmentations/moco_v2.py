"""The preset `moco_v2`."""

from sslcli.contracts.views import Preset


class MoCoV2Preset(Preset):
    """MoCo v2's two views, also used by SimSiam (Chen et al., https://arxiv.org/abs/2003.04297)."""

    fixed = [
        {
            "count": 2,
            "crop_scale": [0.2, 1.0],
            "interpolation": "bilinear",
            "flip": 0.5,
            "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8},
            "grayscale": 0.2,
            "blur": 0.5,
        }
    ]
