"""Every model of timm without its classifier, as `timm/NAME`.

Which images a model takes, and the size of its features, are found by trial, so new models of timm work too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import timm
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslcli.contracts.backbone import Backbone, BackboneProvider, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.modules.gradient_checkpointing import GradientCheckpointingOptions, last_outputs
from sslcli.modules.masks import check_request, refuse_layers, refuse_masks, replace_masked, take

#: The smallest view that a model is tried with; if it fails, the size that it is built for is its smallest.
SMALLEST = 32
#: Arguments that only some models take; they are omitted for the others.
_TRIED = ("img_size", "dynamic_img_size")
_OURS = {"num_classes", "in_chans", "img_size", "pretrained", "drop_path_rate", "drop_rate"}


class TimmOptions(GradientCheckpointingOptions):
    """Options of a model of timm."""

    pretrained: bool = False
    """Start from timm's published weights, which it downloads once. Read when a run starts, as `weights` are."""
    drop_path_rate: float = Field(default=0.0, ge=0, lt=1)
    """Probability of skipping a residual branch in training, in the last block; for models that have it."""
    drop_rate: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in training; for models that have it."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model, under timm's names: `{patch_size: 4, depth: 6}`."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError("a backbone starts from `weights` or from `pretrained` ones, not from both")
        ours = sorted(_OURS & set(self.arguments))
        if ours:
            raise ValueError(f"arguments.{ours[0]} is set by sslcli: by the option of that name, or the views and data")
        return self


class TimmBackbone(Backbone):
    """A model of timm without its classifier; `network` is the model."""

    Options = TimmOptions
    name: ClassVar[str]

    def __init__(self, options: TimmOptions, channels: int, image_size: int) -> None:
        super().__init__()
        self.options = options
        self.network, self.arguments = self._build_network(channels, image_size)
        dim = self._try(image_size, channels)
        if dim is None:
            raise UserError(f"backbone: timm/{self.name} cannot take views of {image_size} pixels: set views.size")
        self._patch = self._patch_size()
        fixed = "img_size" in self.arguments and "dynamic_img_size" not in self.arguments
        least = self._patch or min(SMALLEST, image_size)
        if fixed or (least < image_size and self._try(least, channels) is None):
            least = image_size
        self.spec = BackboneSpec(dim, channels, least, self._patch or 1, self._patch, maskable=self._patch is not None)
        if options.gradient_checkpointing:
            self._check_checkpointing()
            self.train()

    @classmethod
    def build(cls, options: TimmOptions, channels: int, image_size: int) -> TimmBackbone:
        try:
            return cls(options, channels, image_size)
        except UserError:
            raise
        except Exception as error:  # timm's models reject sizes and arguments in different ways
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"backbone: timm/{cls.name} cannot be built for {channels} channels and views of {image_size} pixels "
                f"({type(error).__name__}: {reason})"
            ) from error

    def _build_network(self, channels: int, image_size: int) -> tuple[Any, dict[str, Any]]:
        """Returns the model, and the arguments that it took."""
        arguments: dict[str, Any] = {"num_classes": 0, "in_chans": channels, "img_size": image_size}
        arguments |= {"dynamic_img_size": True, **self.options.arguments}
        for key in ("drop_path_rate", "drop_rate"):
            if getattr(self.options, key):
                arguments[key] = getattr(self.options, key)
        while True:
            try:
                return timm.create_model(self.name, pretrained=False, **arguments), arguments
            except TypeError as error:
                refused = [key for key in _TRIED if key in arguments and f"'{key}'" in str(error)]
                if not refused:
                    raise
                del arguments[refused[0]]

    def _try(self, side: int, channels: int) -> int | None:
        """Returns the dimension of the features of an image of this size; None if the network cannot take it."""
        network = self.network.eval()
        weight = next(network.parameters())
        try:
            with torch.no_grad():
                found = network(torch.zeros(1, channels, side, side, dtype=weight.dtype, device=weight.device))
        except Exception:  # networks reject small images in different ways
            return None
        finally:
            network.train()
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise UserError(
                f"backbone: timm/{self.name} gives no vector for an image; choose a model for classification"
            )
        return int(found.shape[1])

    def _check_checkpointing(self) -> None:
        """Raises UserError if timm cannot, or if a second pass over a block would change the run."""
        key = "backbone.gradient_checkpointing"
        if any(isinstance(part, _BatchNorm) for part in self.network.modules()):
            raise UserError(f"{key}: timm/{self.name} has batch norms, which would see each batch twice: leave it off")
        try:
            self.network.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise UserError(f"{key}: timm/{self.name} does not offer it: leave it off") from error

    def train(self, mode: bool = True) -> Self:
        """As for every module; in `eval()` gradient checkpointing is off."""
        super().train(mode)
        if self.options.gradient_checkpointing:
            self.network.set_grad_checkpointing(mode)
        return self

    def _patch_size(self) -> int | None:
        """The side of a patch of a vision transformer, whose tokens form a grid; None for other networks."""
        if not isinstance(self.network, timm.models.VisionTransformer):
            return None
        height, width = self.network.patch_embed.patch_size
        return int(height) if height == width else None

    @property
    def patch_projection(self) -> nn.Module | None:
        """The layer of a vision transformer that embeds patches, for MoCo v3; None for others."""
        return None if self._patch is None else self.network.patch_embed.proj

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, D) of images (N, C, H, W), and of vision transformers the patches' on their grid.

        Raises:
            UserError: a mask, a subset or more than one layer is asked of a model that is no vision transformer.
        """
        if self._patch is None:
            refuse_masks(f"timm/{self.name}", mask, mask_token, keep)
            refuse_layers(f"timm/{self.name}", layers)
            return Features(pooled=self.network(x))
        network, prefix = self.network, self.network.num_prefix_tokens
        refuse_layers(f"timm/{self.name}", layers, most=len(network.blocks))
        if mask is None and mask_token is None and keep is None and layers == 1:
            outputs = [network.forward_features(x)]
        else:
            outputs = self._outputs(x, mask, mask_token, keep, layers)
        grid = (x.shape[-2] // self._patch, x.shape[-1] // self._patch)
        tokens = outputs[-1][:, prefix:]
        pooled = network.forward_head(outputs[-1])
        if tokens.shape[1] != (grid[0] * grid[1] if keep is None else keep.shape[1]):  # some drop patches, or pad
            return Features(pooled)
        has_class = network.cls_token is not None
        parts = tuple((out[:, 0] if has_class else None, out[:, prefix:]) for out in outputs)
        return Features(pooled, tokens, grid if keep is None else None, parts)

    def _outputs(
        self, x: Tensor, mask: Tensor | None, mask_token: Tensor | None, keep: Tensor | None, layers: int
    ) -> list[Tensor]:
        """timm's `forward_features` of a vision transformer, with masks; the last layers' outputs, each normalized."""
        network = self.network
        tokens = network.patch_embed(x)  # N×L×D, or N×rows×columns×D for any size
        shape = tokens.shape
        flat = tokens.reshape(shape[0], -1, shape[-1])
        check_request(f"timm/{self.name}", flat.shape[1], mask, mask_token, keep)
        if mask is not None and mask_token is not None:
            flat = replace_masked(flat, mask, mask_token)
        tokens = network._pos_embed(flat.reshape(shape))
        if keep is None:
            tokens = network.patch_drop(tokens)
        else:
            prefix = network.num_prefix_tokens
            tokens = torch.cat([tokens[:, :prefix], take(tokens[:, prefix:], keep)], dim=1)
        outputs = last_outputs(network.blocks, network.norm_pre(tokens), layers, recompute=network.grad_checkpointing)
        return [network.norm(out) for out in outputs]

    def layer_modules(self) -> Sequence[nn.Module]:
        """Returns the blocks of a vision transformer; nothing for other networks."""
        return () if self._patch is None else tuple(self.network.blocks)

    def published_state(self) -> dict[str, Tensor] | None:
        """Returns timm's weights, which timm adapts to the channels and the image size."""
        if not self.options.pretrained:
            return None
        try:
            model: nn.Module = timm.create_model(self.name, pretrained=True, **self.arguments)
        except Exception as error:  # of the network connection, the disk or the reader
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"backbone.pretrained: timm's weights of {self.name} cannot be loaded ({reason}): start without"
            ) from error
        return dict(model.state_dict())

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under timm's names, and lines that build timm's model around them."""
        shown = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        lines = [
            "import timm",
            f"model = timm.create_model({self.name!r}, {shown})",
            "model.load_state_dict(state, strict=True)",
        ]
        return dict(self.network.state_dict()), "\n".join(lines) + "\n"

    def import_state(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state, strict=True)


class TimmModels(BackboneProvider):
    """Every model of timm without its classifier."""

    @classmethod
    def names(cls) -> list[str]:
        """Lists timm's names."""
        return timm.list_models()

    @classmethod
    def get(cls, name: str) -> type[Backbone]:
        """Returns the backbone class, always the same for a name; raises KeyError for an unknown name."""
        return _backbone(name)


@functools.cache
def _backbone(name: str) -> type[TimmBackbone]:
    if not timm.is_model(name):
        raise KeyError(name)
    about = f"timm's {name} without its classifier."
    return type(name, (TimmBackbone,), {"__doc__": about, "__module__": __name__, "name": name})
