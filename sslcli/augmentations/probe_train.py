"""The preset `probe_train`."""

from sslcli.contracts.views import Preset


class ProbeTrainPreset(Preset):
    """The one view on which a linear probe or fine-tuning is trained: random resized crop and flip."""

    fixed = [{"count": 1, "crop_scale": [0.08, 1.0], "interpolation": "bilinear", "flip": 0.5}]
