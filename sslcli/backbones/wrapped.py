"""Any `nn.Module` as a backbone, for the Python API; a pass over two black images finds the size of its features."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sslcli.contracts.backbone import Backbone, BackboneOptions, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.modules.masks import refuse_layers, refuse_masks

from .classifier import cut_classifier, last_linear, linear_outputs, looks_like_classifier, written

log = logging.getLogger(__name__)

#: How to say that a module's last layer is no classifier.
_KEEP = 'backbone={"name": module, "classifier": "keep"}'


class WrappedOptions(BackboneOptions):
    """Options of a module that is given as an object."""

    legacy: ClassVar[Mapping[str, Any]] = {"classifier": "keep"}

    classifier: Literal["cut", "keep"] = "cut"
    """`cut`: train the network without the classifier at its end: that of torchvision's and timm's models is cut off, a
    module that seems to end in another one is refused. `keep`: take the module as it is, whatever it returns."""


class WrappedBackbone(Backbone):
    """A module of the user's own; `network` is a copy of it, or the module itself if weights are to be loaded into it.

    Attributes:
        title: its name in messages (`python:MyNet`).
        template: the user's module.
        in_place: `network` is the template itself.
        told: the user knows what becomes of its last layer.
        cut: lines that cut the classifier off, as it was done to `network`.
        last: what to say if the linear layer that computes the features is a classifier; None if none does, or it is
            to be kept.
    """

    Options = WrappedOptions
    title: ClassVar[str]
    template: ClassVar[nn.Module]
    in_place = False
    told: ClassVar[bool] = False

    def __init__(self, network: nn.Module, spec: BackboneSpec, cut: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.cut = list(cut)
        self.last: str | None = None

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> WrappedBackbone:
        """Training starts from the module's own weights; the module itself is not changed, unless `in_place`.

        Raises:
            UserError: it cannot be copied, cannot take such images, does not return features, or seems to end in a
                classifier whose place is not known.
        """
        whole = isinstance(cls.template, Backbone) or getattr(options, "classifier", "cut") == "keep"
        tried = _copied(cls.template, cls.title)
        cut = [] if whole else cut_classifier(tried)
        spec, last = probe(tried, channels, image_size, cls.title)
        refusal = None
        if last is not None and not whole:
            end = f"{written(last[0])} ({last[1].in_features} → {last[1].out_features})"
            end = f"backbone: {cls.title} ends in the linear layer {end}"
            refusal = (
                f"{end}, which looks like a classifier: write {written(last[0])} = torch.nn.Identity(), or {_KEEP}"
            )
            if looks_like_classifier(tried, *last):
                raise UserError(refusal)
            if not cls.told:
                log.info(f"{end}; its outputs are taken as the features")
        if cut and not cls.told:
            log.info(
                f"backbone: {cls.title} ends in a classifier, which is left out ({'; '.join(cut)}): "
                f"{spec.feature_dim} features; {_KEEP} takes it as it is"
            )
        cls.told = True
        network = cls.template if cls.in_place else _copied(cls.template, cls.title)
        if cut:
            cut_classifier(network)
        built = cls(network, spec, cut)
        built.last = refusal
        return built

    def check_classes(self, count: int) -> None:
        """Raises UserError if the last layer has as many outputs as the data has classes."""
        if self.last is not None and self.spec.feature_dim == count:
            raise UserError(self.last)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, D) of images (N, C, H, W); if the module is a `Backbone`, all that it returns.

        Raises:
            UserError: if a mask, a subset or more than one layer is asked of a module that is not a `Backbone`, or the
                module does not return features.
        """
        if isinstance(self.network, Backbone):
            features: Features = self.network(x, mask, mask_token=mask_token, keep=keep, layers=layers)
            return features
        refuse_masks(self.title, mask, mask_token, keep)
        refuse_layers(self.title, layers)
        return Features(pooled=_pooled(self.network(x), self.title))

    def layer_modules(self) -> Sequence[nn.Module]:
        return self.network.layer_modules() if isinstance(self.network, Backbone) else ()

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under the module's own names, and lines that load them into the reader's own `model`."""
        if isinstance(self.network, Backbone):
            return self.network.export_state()
        lines = [f"# `model` is a {type(self.network).__name__}, built as for training"]
        lines += ["import torch", *self.cut] if self.cut else []
        return dict(self.network.state_dict()), "\n".join([*lines, "model.load_state_dict(state, strict=True)"])

    def import_state(self, state: dict[str, Tensor]) -> None:
        if isinstance(self.network, Backbone):
            self.network.import_state(state)
        else:
            self.network.load_state_dict(state, strict=True)


def wrap(module: nn.Module, name: str, *, in_place: bool = False) -> type[WrappedBackbone]:
    """Returns a backbone class around a module.

    Args:
        module: (N, C, H, W) → (N, D) or (N, D, 1, 1), or a `Backbone`.
        name: its name in messages.
        in_place: `build` uses the module itself instead of a copy, so that weights are loaded into it.

    Raises:
        UserError: the module has lazy layers that have not been initialized.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise UserError(f"backbone: {name} has uninitialized lazy layers: call it once on a batch of images first")
    return type(type(module).__name__, (WrappedBackbone,), {"title": name, "template": module, "in_place": in_place})


def probe(
    module: nn.Module, channels: int, image_size: int, name: str
) -> tuple[BackboneSpec, tuple[str, nn.Linear] | None]:
    """Finds the size of a module's features by passing it two black images in `eval()`, and the linear layer that
    computes them, with its name, if one does.

    Torch's random state stays as it is; the module's mode, buffers and whatever else a forward pass changes do not, so
    give it a copy.

    Raises:
        UserError: it cannot take such images, or returns anything but (2, D) or (2, D, 1, 1).
    """
    if isinstance(module, Backbone) and module.spec.channels != channels:
        raise UserError(f"backbone: {name} takes images of {module.spec.channels} channels; the data has {channels}")
    images = torch.zeros(2, channels, image_size, image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), linear_outputs(module) as linears:
            output = module.eval()(images)
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"backbone: {name} cannot take images {tuple(images.shape)}: {reason}") from error
    if isinstance(module, Backbone):
        return module.spec, None
    pooled = _pooled(output, name)
    if len(pooled) != 2:
        raise UserError(
            f"backbone: {name} returned {tuple(output.shape)} for two images; the first dimension must be the batch"
        )
    return BackboneSpec(feature_dim=pooled.shape[1], channels=channels), last_linear(linears, output)


def _pooled(output: Any, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise UserError(
            f"backbone: {name} returned a {type(output).__name__}; it should be a tensor (N, D): wrap it in a module "
            "that selects the features"
        )
    if output.ndim == 2:
        return output
    if output.ndim == 4 and output.shape[2:] == (1, 1):
        return output.flatten(1)
    raise UserError(
        f"backbone: {name} returned {tuple(output.shape)}; it should be (N, D) or (N, D, 1, 1): add a pooling such as "
        "nn.AdaptiveAvgPool2d(1)"
    )


def _copied(module: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(module).cpu()
    except Exception as error:  # non-leaf tensors, handles, locks
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"backbone: {name} cannot be copied, which training requires: {reason}") from error
