"""The preset `moco_v1`."""

from sslcli.contracts.views import Preset


class MoCoV1Preset(Preset):
    """MoCo v1's two views (He et al., https://arxiv.org/abs/1911.05722, section 3.3, in the order of its code).

    Grayscale comes before the jitter, so that only brightness and contrast change a gray view.
    """

    fixed = [
        {
            "count": 2,
            "crop_scale": [0.2, 1.0],
            "interpolation": "bilinear",
            # The authors' code flips last; a flip commutes with the others, and right after the crop it is free.
            "order": ["flip", "grayscale", "jitter"],
            "flip": 0.5,
            "grayscale": 0.2,
            "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4, "p": 1.0},
        }
    ]
