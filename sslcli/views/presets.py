"""Recipes under their papers' names, in the language of a config's `views:` section."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

from .crop import Interpolation

#: Views up to this side get the recipe that the papers use on CIFAR.
SMALL = 64


class SimCLROptions(Options):
    strength: float | None = Field(default=None, ge=0, le=2.5)
    """Strength of the colour jitter; by default 0.5 up to 64 pixels, else 1."""
    blur: float | None = Field(default=None, ge=0, le=1)
    """Share of the samples that are blurred; by default 0 up to 64 pixels, else 0.5."""


class SimCLRPreset(Preset):
    """SimCLR's two views (Chen et al., https://arxiv.org/abs/2002.05709, appendices A and B.9)."""

    Options = SimCLROptions

    @classmethod
    def views(cls, options: SimCLROptions, size: int) -> list[dict[str, Any]]:
        small = size <= SMALL
        strength = options.strength if options.strength is not None else (0.5 if small else 1.0)
        p = options.blur if options.blur is not None else (0.0 if small else 0.5)
        # A tenth of a small view is a kernel of 3 pixels, which would hardly blur.
        blur = p if small or p == 0 else {"p": p, "kernel": 0.1}
        jitter = {
            "brightness": 0.8 * strength,
            "contrast": 0.8 * strength,
            "saturation": 0.8 * strength,
            "hue": 0.2 * strength,
            "p": 0.8,
        }
        return [
            {
                "count": 2,
                "crop_scale": [0.08, 1.0],
                "interpolation": "bicubic",
                "flip": 0.5,
                "jitter": jitter,
                "grayscale": 0.2,
                "blur": blur,
            }
        ]


def _jitter(brightness: float, contrast: float, saturation: float, hue: float) -> dict[str, float]:
    return {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue, "p": 0.8}


class MoCoV1Preset(Preset):
    """MoCo v1's two views (He et al., https://arxiv.org/abs/1911.05722, section 3.3, in the order of its code).

    Gray comes before the jitter there, so that a gray view stays gray levels that only brightness and contrast change.
    """

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return [
            {
                "count": 2,
                "crop_scale": [0.2, 1.0],
                "interpolation": "bilinear",
                # The flip is last in the code; it commutes with the others, and costs nothing after the crop.
                "order": ["flip", "grayscale", "jitter"],
                "flip": 0.5,
                "grayscale": 0.2,
                "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4, "p": 1.0},
            }
        ]


class MoCoV2Preset(Preset):
    """MoCo v2's two views, also SimSiam's (Chen et al., https://arxiv.org/abs/2003.04297)."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return [
            {
                "count": 2,
                "crop_scale": [0.2, 1.0],
                "interpolation": "bilinear",
                "flip": 0.5,
                "jitter": _jitter(0.4, 0.4, 0.4, 0.1),
                "grayscale": 0.2,
                "blur": 0.5,
            }
        ]


class SupConPreset(Preset):
    """SupCon's two views in its authors' PyTorch code: MoCo v2's without the blur (https://arxiv.org/abs/2004.11362)."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        (view,) = MoCoV2Preset.views(options, size)
        return [{**view, "blur": 0.0}]


def _unlike_pair(blur: tuple[float, float], solarize: tuple[float, float]) -> list[dict[str, Any]]:
    """BYOL's two views, which differ in blur and solarize alone."""
    shared = {
        "count": 1,
        "crop_scale": [0.08, 1.0],
        "interpolation": "bicubic",
        "flip": 0.5,
        "jitter": _jitter(0.4, 0.4, 0.2, 0.1),
        "grayscale": 0.2,
    }
    return [{**shared, "blur": b, "solarize": s} for b, s in zip(blur, solarize, strict=True)]


class BYOLPreset(Preset):
    """BYOL's two unlike views, also Barlow Twins' and VICReg's (Grill et al., https://arxiv.org/abs/2006.07733, B)."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return _unlike_pair(blur=(1.0, 0.1), solarize=(0.0, 0.2))


class CIFARAsymPreset(Preset):
    """BYOL's views as the libraries use them on CIFAR: without blur."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return _unlike_pair(blur=(0.0, 0.0), solarize=(0.0, 0.2))


class CIFARWeakPreset(Preset):
    """MoCo v2's views as the libraries use them on CIFAR: crops down to 8 % of the image, bicubic."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        (view,) = MoCoV2Preset.views(options, size)
        return [{**view, "crop_scale": [0.08, 1.0], "interpolation": "bicubic"}]


class ProbeTrainPreset(Preset):
    """The one view that a classic linear probe or a fine-tuning learns from: random resized crop and flip."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return [{"count": 1, "crop_scale": [0.08, 1.0], "interpolation": "bilinear", "flip": 0.5}]


class ProbeEvalOptions(Options):
    ratio: float | None = Field(default=None, ge=1)
    """The shorter side is resized to this times the view's size; by default 256 / 224, but 1 up to 64 pixels."""
    interpolation: Interpolation = "bilinear"
    """The filter: `bilinear` or `bicubic`; both antialiased."""


class ProbeEvalPreset(Preset):
    """The one view that a probe is judged on: the middle of the resized image. Small images are taken as they are."""

    Options = ProbeEvalOptions

    @classmethod
    def views(cls, options: ProbeEvalOptions, size: int) -> list[dict[str, Any]]:
        usual = 1.0 if size <= SMALL else 256 / 224
        ratio = usual if options.ratio is None else options.ratio
        return [
            {"count": 1, "operations": [{"name": "resize", "ratio": ratio, "interpolation": options.interpolation}]}
        ]
