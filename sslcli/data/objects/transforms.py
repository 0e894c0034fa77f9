"""Any callable on an image as a view, for the Python API: torchvision's transforms, for example.

It is a geometric operation without options that worker processes call, one image at a time, under seeds that are a
function of (seed, epoch, position, view) as all draws are; so a run is repeated and resumed exactly.
"""

from __future__ import annotations

import copy
import inspect
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .given import reason
from .items import to_pixels

#: Height and width of the images that a callable is tried on, to find out what size it returns.
_TRIED = ((320, 256), (448, 512))


@dataclass(frozen=True)
class Transform:
    """A callable, its name in messages (`python:Compose`), and the user's object, of which it may be a part."""

    call: Any
    title: str
    given: Any = None

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Turns uint8 (C, H, W) into uint8 (C, height, width) of any size.

        The callable gets a PIL image, `RGB` or `L`, and the keyword `seed` if it has a parameter of this name.
        Python's, NumPy's and torch's (CPU) generators are seeded for the call, and restored.

        Raises:
            UserError: it fails, or returns anything but one image (see `to_pixels`).
        """
        array = image.permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(array if len(image) == 3 else array[:, :, 0])
        try:
            with _seeded(seed):
                made = self.call(picture, seed=seed) if self._takes_seed else self.call(picture)
            if isinstance(made, list | tuple):
                raise ValueError(
                    f"returned a {type(made).__name__}; give a callable for each view: views=[first, second]"
                )
            return to_pixels(made, len(image))
        except Exception as error:  # whatever the user's code raises
            raise UserError(f"views: {self.title}: {reason(error)}") from error

    @property
    def _takes_seed(self) -> bool:
        try:
            return "seed" in inspect.signature(self.call).parameters
        except (TypeError, ValueError):  # built in
            return False

    @property
    def about(self) -> str:
        """What the callable shows of itself, in one line, without addresses."""
        return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(self.call)).split())

    def side(self) -> int | None:
        """Returns the side of what it makes of images of different sizes; None if that isn't one, or it fails."""
        sizes = set()
        for height, width in _TRIED:
            noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))
            try:
                sizes |= set(self(noise, 0).shape[1:])
            except UserError:  # shown for a real image
                return None
        return int(sizes.pop()) if len(sizes) == 1 else None


class TransformOptions(Options):
    """Options of a callable that is given as an object."""

    about: str = ""
    """What the callable shows of itself (its `repr`); set by `sslcli.train`. A run is not resumed with another."""


class TransformOperation(Operation):
    """A view that a callable makes; `transform` has it."""

    Options = TransformOptions
    geometric = True
    in_workers = True
    draws = 1
    held: ClassVar[Transform]

    def __init__(self, options: Any, size: int) -> None:
        super().__init__(options, size)
        self.transform = self.held

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"seed": (uniform[:, 0] * 2**53).long()}

    def note(self, parameters: Parameters) -> str:
        return ""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        raise TypeError("a callable is called on one image at a time")

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        """Raises UserError as `Transform` does, and for an image of another size than the view's."""
        made = self.transform(image, int(parameters["seed"]))
        height, width = made.shape[1:]
        if (height, width) != (self.size, self.size):
            raise UserError(
                f"views: {self.transform.title} returned {width} × {height} px for a view of {self.size} px: end it "
                "in a crop or resize to one size, or say which: views=[{'operations': [transform], 'size': …}]"
            )
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made for one object, and no other process finds it by its name.
        return object.__new__, (TransformOperation,), self.__dict__


def wrap_transform(transform: Transform) -> type[TransformOperation]:
    """Returns an operation class around a callable."""
    return type(transform.title.rpartition(":")[2], (TransformOperation,), {"held": transform})


def without_normalize(call: Any) -> tuple[Any, tuple[list[float], list[float]] | None]:
    """Takes torchvision's `Normalize` off the end of a sequence of transforms, which itself is not changed.

    Returns:
        the sequence without it, and its mean and std; the callable itself and None if it doesn't end in one.
    """
    steps = list(call) if isinstance(call, nn.Sequential) else getattr(call, "transforms", None)
    if not isinstance(steps, list) or not steps:
        return call, None
    last = steps[-1]
    if type(last).__name__ != "Normalize" or not type(last).__module__.startswith("torchvision."):
        return call, None
    if isinstance(call, nn.Sequential):
        rest: Any = call[:-1]
    else:
        rest = copy.copy(call)
        rest.transforms = steps[:-1]
    return rest, ([float(each) for each in last.mean], [float(each) for each in last.std])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's CPU generators for a block, and restores them."""
    generator = torch.default_generator  # `torch.manual_seed` would seed the devices' too
    states = random.getstate(), np.random.get_state(), generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        generator.set_state(states[2])
