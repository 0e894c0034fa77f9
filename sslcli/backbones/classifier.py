"""Networks that end in a classifier: cut off in torchvision's and timm's models, recognized in others."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

#: What the last layer of a classifier is usually called, and how many classes usual datasets have.
_NAMES = frozenset({"fc", "head", "heads", "classifier", "logits", "last_linear", "fc_out", "output_layer"})
_CLASSES = frozenset({10, 37, 100, 101, 102, 196, 200, 365, 397, 1000, 10450, 21841, 21843})

#: Every linear layer that has run: its name in the network, the layer, and what it returned.
Linears = list[tuple[str, nn.Linear, Tensor]]


def cut_classifier(network: Any) -> list[str]:
    """Cuts a classification model of torchvision or timm off before its classifier, in place.

    Returns:
        lines that do the same to `model`; none for other networks, and for those that have no classifier.
    """
    if hasattr(network, "reset_classifier") and network.num_classes:  # timm's
        network.reset_classifier(0)
        return ["model.reset_classifier(0)"]
    if not re.fullmatch(r"torchvision\.models\.\w+", type(network).__module__):  # not the detectors in folders below
        return []
    found = cut_torchvision(network)
    return [] if found is None else found[1]


def cut_torchvision(network: Any) -> tuple[int, list[str]] | None:
    """Cuts a classification model of torchvision off before its first classifying layer, in place.

    Returns:
        the size of that layer's input for an image, D, and lines that do the same to `model`; None if it has none.
    """
    lines: list[str] = []

    def put(name: str, value: Any, written: str) -> None:
        setattr(network, name, value)
        lines.append(f"model.{name} = {written}")

    found = [name for name in ("fc", "classifier", "heads", "head") if hasattr(network, name)]
    head: Any = getattr(network, found[0], None) if found else None
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear | nn.Conv2d)), None)
    if first is None:
        return None
    layer: Any = layers[first]
    dim = int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
    if isinstance(layer, nn.Conv2d):
        put(found[0], nn.AdaptiveAvgPool2d(1), "torch.nn.AdaptiveAvgPool2d(1)")
    elif all(isinstance(each, nn.Dropout) for each in layers[:first]):
        put(found[0], nn.Identity(), "torch.nn.Identity()")
    else:
        put(found[0], head[:first], f"model.{found[0]}[:{first}]")  # keep the norm before the classifier
    if isinstance(getattr(network, "dropout", None), nn.Dropout):
        put("dropout", nn.Identity(), "torch.nn.Identity()")
    pool = getattr(network, "avgpool", None)
    if isinstance(pool, nn.AdaptiveAvgPool2d) and isinstance(pool.output_size, tuple):
        pixels = math.prod(side or 1 for side in pool.output_size)
        if pixels > 1:  # AlexNet and VGG classify a map of pixels
            put("avgpool", nn.AdaptiveAvgPool2d(1), "torch.nn.AdaptiveAvgPool2d(1)")
            dim //= pixels
    for name in ("aux1", "aux2", "AuxLogits"):  # GoogLeNet's and Inception's, which return more than one tensor
        if isinstance(getattr(network, name, None), nn.Module):
            put(name, None, "None")
            if network.aux_logits:
                put("aux_logits", False, "False")
    return dim, lines


@contextmanager
def linear_outputs(network: nn.Module) -> Iterator[Linears]:
    """Gives a list that gets what every linear layer returns within the block."""
    seen: Linears = []

    def watch(name: str, layer: nn.Linear) -> Any:
        return layer.register_forward_hook(lambda _module, _inputs, output: seen.append((name, layer, output)))

    hooks = [watch(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def last_linear(seen: Linears, output: Tensor) -> tuple[str, nn.Linear] | None:
    """Returns the linear layer whose output is that of the whole network, and its name; None if there is none."""
    same = (
        (name, layer)
        for name, layer, found in reversed(seen)
        if found.numel() == output.numel() and found.untyped_storage()._cdata == output.untyped_storage()._cdata
    )
    return next(same, None)


def looks_like_classifier(network: nn.Module, name: str, layer: nn.Linear) -> bool:
    """Tells by its name and its number of outputs whether a network's last layer is a classifier."""
    own = sum(parameter.numel() for parameter in layer.parameters())
    if own == sum(parameter.numel() for parameter in network.parameters()):
        return False  # there is nothing before it
    words = [part for part in name.split(".") if not part.isdecimal()]
    named = bool(words) and words[-1] in _NAMES
    return layer.out_features in _CLASSES or (named and layer.out_features < layer.in_features)


def written(name: str) -> str:
    """Returns how a part of `module` is written in Python: `classifier.6` is `module.classifier[6]`."""
    return "module" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in name.split(".") if part)
